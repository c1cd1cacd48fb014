"""Images without masks, which a segmenter labels for a training that mixes them in."""

from dataclasses import replace
from pathlib import Path

from geoseg_gan.config import compose
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.scan import FolderIndex
from geoseg_gan.data.split import refuse_validated
from geoseg_gan.synthesis.generate import MOST, generate
from geoseg_gan.synthesis.pseudo_labels import check_images, check_labels
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.training.settings import TrainingConfig
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import check_apart


def check_unlabelled(config: TrainingConfig) -> None:
    """Refuses settings by which no images could be labelled.

    Raises:
        UserError: Naming the folder and what to do.
    """
    folder = Path(config.unlabelled or "")
    if config.data.format == "stream":
        raise UserError(
            f"unlabelled={folder}: how sure labels must be is chosen on held-out tiles of a "
            "folder. Set data.format=folder, or label with scripts/generate.py confidence=0.7."
        )
    check_labels(mask_reader(config.data), config.data.fit)
    check_apart("out_dir", Path(config.out_dir), folder, [""])


def check_unlabelled_images(config: TrainingConfig, index: FolderIndex) -> None:
    """Refuses images that could not be labelled, or are validated on, before anything slow starts.

    `index` is that of the labelled pairs.

    Raises:
        UserError: Naming one, or the folder.
    """
    root, folder = Path(config.data_root), Path(config.unlabelled or "")
    images = check_images(folder, config.image_size, index.bands, index.dtype.name)
    if (root / "val").is_dir():
        refuse_validated(list(images), find_pairs(root, "val", config.data.group_regex))


def label(config: TrainingConfig, segmenter: Path, labelled: Path, side: int | None = None) -> None:
    """Labels the unlabelled images, goes on with it, or does nothing where it is done.

    Args:
        config: The training that they are for.
        segmenter: Checkpoint of the segmenter.
        labelled: The folder of pairs.
        side: Of the windows in pixels; None for one that suits the segmenter.

    Raises:
        UserError: If the segmenter is sure of nothing.
    """
    settings = replace(
        compose(GenerateConfig, ["source=unlabelled"]),
        segmenter_ckpt=str(segmenter),
        data_root=config.data_root,
        unlabelled=config.unlabelled,
        save_dir=str(labelled),
        image_size=side,
        num_samples=MOST,
        seed=config.seed,
        devices=config.devices,
        trainer=config.trainer,
    )
    found = generate(settings)
    if found and not found["pairs"]:
        raise UserError(
            f"{segmenter} is not sure enough of anything in {config.unlabelled}. Train it longer, "
            "or look at how its predictions on held-out tiles differ from their masks."
        )
