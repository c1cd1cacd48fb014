"""New ground: location groups that a trial takes to have no labels, as another area has none."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Self

from geoseg_gan.data.pairs import TILES_CSV, DataError, Pair
from geoseg_gan.trials.settings import TrialConfig
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_folder, link_file, write_csv

GROUND = "ground"
"""The folder in a trial's `out_dir` that holds its data where `val_groups` is given."""

_UNLABELLED, _MASKS = "unlabelled", "unlabelled_masks"


@dataclass(frozen=True)
class Ground:
    """The pairs of a data folder by what they are to a trial with `val_groups`.

    Attributes:
        labelled: Pairs of other ground, of both splits, which segmenters are trained on.
        unlabelled: Pairs of the new ground in train/, whose masks only `labelled_target` reads.
        validated: Pairs of the new ground in val/.
    """

    labelled: list[Pair]
    unlabelled: list[Pair]
    validated: list[Pair]

    @classmethod
    def divide(cls, patterns: Sequence[str], train: Sequence[Pair], val: Sequence[Pair]) -> Self:
        """Divides the pairs of the two splits by patterns of the new ground's location groups.

        Raises:
            UserError: If a pattern fits no group, or one of the three parts would be empty.
        """
        names = sorted({pair.group for pair in chain(train, val)})
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                shown = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
                raise UserError(
                    f"val_groups: no location group is called {pattern}. There are {shown}; * "
                    "stands for any text."
                )

        def is_new(pair: Pair) -> bool:
            return any(fnmatchcase(pair.group, pattern) for pattern in patterns)

        found = cls(
            [pair for pair in chain(train, val) if not is_new(pair)],
            *([pair for pair in part if is_new(pair)] for part in (train, val)),
        )
        parts = {"unlabelled images": "train", "validation tiles": "val"}
        for (what, split), pairs in zip(
            parts.items(), (found.unlabelled, found.validated), strict=True
        ):
            if not pairs:
                raise UserError(
                    f"val_groups={list(patterns)}: the {what} are the tiles of these groups in "
                    f"{split}/, which holds none. Name other groups, or cut the tiles again so "
                    "that the area has location groups in both splits."
                )
        stems = Counter(pair.stem for pair in found.labelled)
        if twice := [stem for stem, count in stems.items() if count > 1]:
            raise DataError(
                f"'{twice[0]}' is in train and in val, which val_groups puts into one folder. "
                "Rename one, its mask and its row in tiles.csv."
            )
        if not found.labelled:
            raise UserError(f"val_groups={list(patterns)} leaves no labelled tile of other ground.")
        pairs_of = ({pair.group for pair in part} for part in (found.unlabelled, found.validated))
        if shared := set.intersection(*pairs_of):
            raise UserError(
                f"val_groups: the location group {min(shared)} is in train and in val, so that "
                "ground which is validated on would be among the unlabelled images. Split by "
                "location group with scripts/tile.py."
            )
        return found

    def write(self, folder: Path) -> None:
        """Writes the new data folder, by links where the file system has them."""
        splits = (("train", self.labelled), ("val", self.validated))
        with atomic_folder(folder, "out_dir") as scratch:
            for split, pairs in splits:
                _link(pairs, scratch / split / "images", scratch / split / "masks")
            _link(self.unlabelled, scratch / _UNLABELLED, scratch / _MASKS)
            rows = ((pair.stem, split, pair.group) for split, pairs in splits for pair in pairs)
            write_csv(scratch / TILES_CSV, ("stem", "split", "group"), rows)


def on_new_ground(config: TrialConfig) -> TrialConfig:
    """The same trial on the data that `Ground.write` writes into its folder."""
    ground = Path(config.out_dir) / GROUND
    parts = {
        name: replace(getattr(config, name), data_root=str(ground))
        for name in ("train", "generate", "train_segmenter")
    }
    return replace(config, data_root=str(ground), true_masks=str(ground / _MASKS), **parts)


def _link(pairs: Sequence[Pair], images: Path, masks: Path) -> None:
    for folder in (images, masks):
        folder.mkdir(parents=True)
    for pair in pairs:
        for source, folder in ((pair.image, images), (pair.mask, masks)):
            link_file(source, folder / source.name)
