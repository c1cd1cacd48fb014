"""The prepare command: lays out a published data set as a data folder."""

import fnmatch
import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from rich.progress import track

from geoseg_gan.config import (
    as_override,
    compose,
    is_made,
    plain,
    script_command,
    stored_yaml,
    write_yaml,
)
from geoseg_gan.data.georeference import read_georeference
from geoseg_gan.data.pairs import SPLITS, TILES_CSV, DataError, Pair, Split
from geoseg_gan.data.published import PUBLISHED, PublishedSet
from geoseg_gan.data.settings import PrepareSettings, TileSettings
from geoseg_gan.data.tile import cut_pairs, summarise
from geoseg_gan.data.tile_splits import choose_groups, join_groups
from geoseg_gan.utils.errors import UserError, install, plural
from geoseg_gan.utils.files import (
    atomic_folder,
    check_apart,
    check_new_folder,
    link_file,
    write_csv,
)
from geoseg_gan.utils.tables import console, print_table


@dataclass(frozen=True)
class Found:
    """What lies in a download.

    Attributes:
        pairs: The pairs, sorted by stem.
        places: The path of each pair's image in the download.
        splits: The split of each pair.
        lonely: Images without a mask, as paths in the download.
        kept_out: How many pairs the set keeps for tests, or has in neither of its lists.
    """

    pairs: list[Pair]
    places: list[str]
    splits: list[Split]
    lonely: list[str]
    kept_out: int


def prepare(config: PrepareSettings) -> dict[Split, int]:
    """Makes `data_root/{train,val}/{images,masks}` and tiles.csv of a published data set.

    Images that are tiles are linked, or copied where the file system has no hard links; larger ones
    are cut as scripts/tile.py does. `data_root` appears whole or not at all, with the settings in
    config.yaml. Without `source`, this prints what to download.

    Returns:
        The number of pairs of each split; none where these settings have made the folder already.

    Raises:
        UserError: If `data` is no published set, `source` is not set or not as it must be, or
            `data_root` exists.
    """
    if config.data.published is None:
        known = ", ".join(sorted(PUBLISHED))
        raise UserError(
            f"no published data set is chosen: give one, as in data=dubai. There are {known}."
        )
    published = PUBLISHED[config.data.published]
    if config.source is None:
        print("\n".join(instructions(published, config.data.published)))
        raise UserError("source is not set: give the folder of the download described above.")
    source, root = Path(config.source), Path(config.data_root)
    if is_made(root, plain(config), stored_yaml(root)):
        return {}
    check_new_folder("data_root", root)
    check_apart("data_root", root, source, [""])
    print(f"Preparing {published.title} in {root}.")
    if config.download:
        download(published, source)
    tiling = replace(
        compose(TileSettings, ["source=."]),
        source=config.source,
        data_root=config.data_root,
        remainder=config.remainder,
        max_ignore=config.max_ignore,
        val_share=config.val_share,
        seed=config.seed,
        data=config.data,
    )
    found = find(published, source, config.split == "published", tiling)
    side = config.tile_size or published.tile_size
    with atomic_folder(root, "data_root") as folder:
        if side is None:
            counts = _link(found, folder)
        else:
            tiling = replace(tiling, tile_size=side)
            reports = cut_pairs(
                found.pairs, found.splits, folder, tiling, grey_bands=published.grey_bands
            )
            counts = {split: len(report.tiles) for split, report in reports.items()}
        write_yaml(folder / "config.yaml", config)
    if found.lonely:
        print(
            f"Left out {plural(len(found.lonely), 'image')} without a mask: {found.lonely[0]} ..."
        )
    if found.kept_out:
        print(f"Left out {plural(found.kept_out, 'pair')} that the set keeps for tests.")
    if side is None:
        _summarise(config, found)
    else:
        summarise(tiling, reports)
    print(f"Licence of {published.title}: {published.licence} ({published.page}).")
    return counts


def instructions(published: PublishedSet, name: str) -> list[str]:
    """The lines that say where a set comes from and how its folder must look."""
    call = f"python scripts/prepare.py data={name} source=FOLDER"
    lines = [
        published.title,
        f"  page:     {published.page}",
        f"  licence:  {published.licence}",
        f"  bands:    {published.bands}",
        f"  download: {published.files}",
        "Unpack it into one folder, in which these files must lie, perhaps in further folders:",
        *(f"  {pattern}" for pattern in published.layout),
        f"Then: {call}",
    ]
    if published.download:
        lines.append(f"Or have torchgeo download and verify it: {call} download=true")
    return lines


def download(published: PublishedSet, source: Path) -> None:
    """Has torchgeo download a set into a folder, verify and unpack it, where it is not there yet.

    Raises:
        UserError: If torchgeo is not installed, cannot download the set, or fails.
    """
    by_hand = f"get {published.files} from {published.page}"
    if published.download is None:
        raise UserError(
            f"torchgeo cannot download {published.title}: {by_hand} and leave download=true out."
        )
    try:
        datasets = importlib.import_module("torchgeo.datasets")
    except ImportError:
        raise UserError(
            "download=true needs torchgeo, which is not installed: "
            f"{install('torchgeo')}. Or {by_hand}."
        ) from None
    source.mkdir(parents=True, exist_ok=True)
    try:
        for keywords in published.download.calls:
            kind = getattr(datasets, published.download.name)
            kind(str(source), download=True, checksum=True, **keywords)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchgeo could not download {published.title} into source={source}: {error}. Call "
            f"again, or {by_hand}."
        ) from None


def find(published: PublishedSet, source: Path, keep_split: bool, settings: TileSettings) -> Found:
    """Finds the pairs of a download and their splits.

    Args:
        published: The set.
        source: Its folder.
        keep_split: Whether to keep the published split, where there is one.
        settings: How location groups to validate on are drawn, where they are.

    Raises:
        UserError: Naming what is missing, or is there twice.
    """
    advice = (
        f"Download {published.files} from {published.page} and unpack it there; without source, "
        "scripts/prepare.py shows how it must look."
    )
    paths = _paths(source, advice)
    _check_layout(published, source, paths, advice)
    images = _by_stem(paths, published.images, published, source)
    masks = _by_stem(paths, published.masks, published, source)
    stems = sorted(images.keys() & masks.keys())
    if not stems:
        raise DataError(
            f"source={source} holds {plural(len(images), 'image')} and "
            f"{plural(len(masks), 'mask')} of {published.title}, of which none belong together. "
            f"{advice}"
        )
    pairs = [
        Pair(stem, source / images[stem][0], source / masks[stem][0], images[stem][1])
        for stem in stems
    ]
    joined = join_groups(pairs, [read_georeference(pair.image) for pair in pairs])
    pairs = [replace(pair, group=joined[pair.group]) for pair in pairs]
    places = [images[stem][0] for stem in stems]
    splits: Sequence[Split | None]
    if keep_split and (published.val or published.lists):
        splits = _published_splits(published, source, paths, places)
    else:
        chosen = choose_groups(joined, settings)
        splits = ["val" if pair.group in chosen else "train" for pair in pairs]
    if published.test:
        kept = [not re.search(published.test, place) for place in places]
        splits = [split if keep else None for split, keep in zip(splits, kept, strict=True)]
    for split in SPLITS:
        if split not in splits:
            raise DataError(
                f"source={source} holds no pair of {published.title} for {split}. {advice} "
                "Or set split=groups, which draws a split of what is there."
            )
    rows = [row for row, split in enumerate(splits) if split is not None]
    return Found(
        pairs=[pairs[row] for row in rows],
        places=[places[row] for row in rows],
        splits=[split for split in splits if split is not None],
        lonely=sorted(images[stem][0] for stem in images.keys() - masks.keys()),
        kept_out=len(splits) - len(rows),
    )


def _paths(source: Path, advice: str) -> list[str]:
    """The paths of all files in a folder, relative to it, sorted; links are followed."""
    if not source.is_dir():
        raise DataError(f"source={source} is no folder. {advice}")
    paths, seen = [], set()
    for folder, folders, names in os.walk(source, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(place)
        relative = PurePosixPath(Path(folder).relative_to(source).as_posix())
        paths += [str(relative / name) for name in names if not name.startswith(".")]
    return sorted(paths)


def _check_layout(published: PublishedSet, source: Path, paths: Sequence[str], advice: str) -> None:
    for pattern in published.layout:
        matches = re.compile(f"(?:.*/)?{fnmatch.translate(pattern)}").match
        if not any(map(matches, paths)):
            packed = [path for path in paths if path.lower().endswith((".zip", ".gz", ".tar"))]
            hint = f"Unpack {packed[0]} there first. " if packed else ""
            raise DataError(f"source={source} holds no {pattern}. {hint}{advice}")


def _by_stem(
    paths: Sequence[str], patterns: Sequence[str], published: PublishedSet, source: Path
) -> dict[str, tuple[str, str]]:
    """Path and location group of the files that patterns find, by the stem of their pair."""
    found: dict[str, tuple[str, str]] = {}
    for pattern in patterns:
        search = re.compile(f"(?:^|/){pattern}$").search
        new: dict[str, tuple[str, str]] = {}
        for path in paths:
            if not (match := search(path)):
                continue
            fields = match.groupdict()
            stem = published.stem.format(**fields)
            if stem in new and stem not in found:
                raise DataError(
                    f"{source / path} and {source / new[stem][0]} are both '{stem}' of "
                    f"{published.title}. Remove one."
                )
            new[stem] = (path, published.group.format(**fields))
        found = new | found
    return found


def _published_splits(
    published: PublishedSet, source: Path, paths: Sequence[str], places: Sequence[str]
) -> list[Split | None]:
    """The published split of each image by its path; None for those that no list names."""
    if not published.lists:
        return ["val" if re.search(published.val or "", place) else "train" for place in places]
    listed: dict[str, Split] = {}
    for split, name in zip(SPLITS, published.lists, strict=True):
        path = next(path for path in paths if PurePosixPath(path).name == name)
        listed |= dict.fromkeys((source / path).read_text(encoding="utf-8-sig").split(), split)
    return [listed.get(PurePosixPath(place).name) for place in places]


def _link(found: Found, folder: Path) -> dict[Split, int]:
    """Links pairs into `folder/{train,val}/{images,masks}`, and writes tiles.csv."""
    counts = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        for part in ("images", "masks"):
            (folder / split / part).mkdir(parents=True)
    rows = list(zip(found.pairs, found.splits, found.places, strict=True))
    for pair, split, _ in track(rows, f"Linking {plural(len(rows), 'pair')}"):
        for part, file in (("images", pair.image), ("masks", pair.mask)):
            link_file(file, folder / split / part / f"{pair.stem}{file.suffix}")
        counts[split] += 1
    table = ((pair.stem, split, place, pair.group) for pair, split, place in rows)
    write_csv(folder / TILES_CSV, ("stem", "split", "source", "group"), table)
    return counts


def _summarise(config: PrepareSettings, found: Found) -> None:
    pairs = list(zip(found.pairs, found.splits, strict=True))
    groups = [{pair.group for pair, own in pairs if own == split} for split in SPLITS]
    rows = [
        ("pairs", *(f"{found.splits.count(split):,}" for split in SPLITS)),
        ("groups", *(f"{len(names):,}" for names in groups)),
    ]
    print_table(rows, ("", *SPLITS), right=len(SPLITS))
    command = script_command("train", [as_override("data_root", config.data_root, PrepareSettings)])
    console(soft_wrap=True).print(f"Wrote {config.data_root}. Next: {command}")
