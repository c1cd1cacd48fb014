"""Images of masks of any size, generated in overlapping windows that share one noise field."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress, track

from geoseg_gan.config import compose, plain
from geoseg_gan.data.batch import one_hot_of, to_device
from geoseg_gan.data.masks import stored_mask_reader
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scene import Export, LineStore, Scene, check_same_settings, little_memory
from geoseg_gan.data.transplant import region_map
from geoseg_gan.data.windows import (
    Floats,
    ReadRows,
    WindowGrid,
    blend,
    check_full_resolution,
    check_windows,
    default_overlap,
)
from geoseg_gan.models.generators.noise import REGIONS, NoiseSpec, noise_maps
from geoseg_gan.models.loaded import LoadedGenerator, load_generator
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.utils.errors import UserError, plural
from geoseg_gan.utils.files import write_json
from geoseg_gan.utils.reading import read_json, whole

_USED = {
    *("gen_ckpt", "mask_path", "overlap", "save_dir", "image_size", "bs", "seed", "devices"),
    "trainer",
}
"""Settings of generate that have a meaning for a scene."""

_OVERLAP = 0.5
_STRIP = 256  # rows whose regions are numbered at once

Label = npt.NDArray[np.uint8]


def check_scene(config: GenerateConfig) -> None:
    """Refuses, with a UserError, settings of generate that have no meaning for a scene."""
    if config.mask_path is None:
        if config.overlap is not None:
            raise UserError(
                f"overlap={config.overlap} is of the windows of a scene: set mask_path."
            )
        return
    usual = plain(compose(GenerateConfig))
    for key, value in plain(config).items():
        if key not in _USED and value != usual[key]:
            shown = f"={value}" if not isinstance(value, dict) else ""
            raise UserError(
                f"{key}{shown} is of pairs, but mask_path={config.mask_path} renders one mask as "
                "it is. Leave one of the two out."
            )
    if config.devices > 1 or config.trainer.num_nodes > 1:
        raise UserError("mask_path: a scene is rendered on one device. Set devices=1.")


def generate_scene(config: GenerateConfig, device: torch.device) -> dict[str, float]:
    """Renders the mask `mask_path` as `save_dir/<its stem>.tif`, a cloud-optimised GeoTIFF.

    Windows are generated row by row and blended (see `data.windows`); what is finished stays, and
    the same call goes on. Ignored pixels of the mask have no data in the image.

    Returns:
        The number of pixels, as "pixels", and of windows, as "windows".

    Raises:
        UserError: If checkpoint, mask or folder are not as they must be.
    """
    assert config.mask_path is not None
    with little_memory():
        return _generate_scene(config, Path(config.mask_path), device)


def _generate_scene(
    config: GenerateConfig, mask_path: Path, device: torch.device
) -> dict[str, float]:
    generator = load_generator(Path(config.gen_ckpt or ""), device)
    data = generator.facts.config["data"]
    check_full_resolution(f"mask_path: {config.gen_ckpt}", data["fit"])
    reader = stored_mask_reader(generator.facts.palette, data)
    mask = Scene(mask_path, reader)
    noise = SceneNoise(generator.network.noise, config.seed)
    grid = _grid(config, generator, mask, noise.align)
    folder = Path(config.save_dir)
    target, part = folder / f"{mask_path.stem}.tif", folder / f"{mask_path.stem}.part"
    record = target.with_suffix(".json")
    settings = {
        "checkpoint": {"sha256": generator.digest, "epoch": generator.epoch},
        "mask": mask.facts(),
        "image_size": grid.side,
        "overlap": grid.overlap,
        "seed": config.seed,
    }
    figures = {"pixels": float(mask.height * mask.width), "windows": float(grid.count)}
    if not part.exists() and target.exists():
        if not record.is_file():
            raise UserError(f"{target} exists already. Choose another save_dir, or remove it.")
        known = read_json(record, {"format": whole()}, "Choose another save_dir.")
        check_same_settings(record, known, settings)
        print(f"{target} is there already, made with these settings.")
        return figures
    scaling = generator.facts.scaling
    shape = (len(scaling.low) + 1, mask.height, mask.width)
    store = LineStore(part, shape, scaling.dtype, settings)
    where = "the GPU" if device.type == "cuda" else "the CPU"
    print(
        f"Generating an image of {mask.width:,}x{mask.height:,} px for {mask_path} on {where}, in "
        f"{plural(grid.count, 'window')} of {grid.side}x{grid.side} px that overlap by "
        f"{grid.overlap}, with a generator of {plural(generator.epoch, 'epoch')}."
    )
    if store.done:
        print(f"Going on: {store.done:,} of {mask.height:,} rows are there.")
    if store.done < mask.height:
        _render(generator, mask, grid, noise, store, config.bs, device)
    print("Writing the cloud-optimised GeoTIFF.")
    bands = range(1, shape[0])
    store.finish([Export(target, bands, mask.place, mask=shape[0])])
    write_json(record, {"format": 1, **settings})
    store.remove()
    print(f"Wrote {target}.")
    return figures


def _grid(
    config: GenerateConfig, generator: LoadedGenerator, mask: Scene, noise_align: int
) -> WindowGrid:
    align = max(generator.network.stride, noise_align)
    # A window as large as the network's coarsest step has no room for an overlap.
    side = config.image_size or max(generator.facts.config["image_size"], 2 * align)
    overlap = config.overlap
    if overlap is None:
        overlap = default_overlap(side, align, _OVERLAP)
    check_windows(side, overlap, align)
    # Beyond the border the mask is mirrored: a network's own padding there would show as a line.
    return WindowGrid(mask.height, mask.width, side, overlap, align, border=align)


def _render(
    generator: LoadedGenerator,
    mask: Scene,
    grid: WindowGrid,
    noise: "SceneNoise",
    store: LineStore,
    batch: int,
    device: torch.device,
) -> None:
    """Generates the rows that a store lacks."""
    regions = None
    if generator.network.noise.region:
        regions = SceneRegions(mask.rows, mask.height)
    step = 1 if device.type == "cpu" else batch  # see generate_images
    begun = grid.first_needed(store.done) * len(grid.lefts)
    with Progress() as bar:
        task = bar.add_task("Generating windows", total=grid.count, completed=begun)

        def windows(number: int) -> Iterator[tuple[int, Floats]]:
            label = grid.read(mask.rows, number)
            numbers = label if regions is None else grid.read(regions.rows, number)
            field = noise.rows(grid.tops[number] + grid.border, grid.side, grid.row_width)
            # From here on, columns count from the left of the first window. Windows without a
            # class have no data, and take no part in others.
            starts = [left + grid.border for left in grid.lefts]
            starts = [left for left in starts if _part(label, left, grid.side).min() != IGNORE]
            for first in range(0, len(starts), step):
                some = starts[first : first + step]
                labels, region_maps = (
                    np.stack([_part(rows, left, grid.side) for left in some])
                    for rows in (label, numbers)
                )
                drawn = np.stack([noise.drawn(field, left, grid.side) for left in some])
                images = _images(generator, labels, region_maps, drawn, noise.margin, device)
                yield from zip((left - grid.border for left in some), images, strict=True)
                bar.advance(task, len(some))
            bar.advance(task, len(grid.lefts) - len(starts))

        for first, values in blend(grid, len(generator.facts.scaling.low), windows, store.done):
            valid = mask.rows(first, first + values.shape[1]) != IGNORE
            image = generator.facts.scaling.to_stored(torch.from_numpy(values))
            image[~valid] = 0
            shown = np.where(valid, 255, 0).astype(image.dtype)
            store.append(np.concatenate([np.moveaxis(image, -1, 0), shown[None]]))


def _part(rows: npt.NDArray[Any], left: int, side: int) -> npt.NDArray[Any]:
    return rows[:, left : left + side]


@torch.inference_mode()
def _images(
    generator: LoadedGenerator,
    labels: Label,
    regions: npt.NDArray[Any],
    drawn: Floats,
    margin: int,
    device: torch.device,
) -> Floats:
    """Images (B, K, S, S) in [-1, 1] of label maps (B, S, S)."""
    one_hot = one_hot_of(to_device(labels, device), generator.facts.palette.num_classes)
    wide = np.pad(regions, ((0, 0), (margin, margin), (margin, margin)))
    noise = noise_maps(generator.network.noise, to_device(drawn, device), to_device(wide, device))
    side = labels.shape[-1]
    noise = noise[..., margin : margin + side, margin : margin + side]
    images: Floats = generator.network(one_hot, noise).float().cpu().numpy()
    return images


class SceneNoise:
    """The noise of a scene: a function of the seed and of the place in the scene.

    Each line of each octave of texture is drawn by itself, from (seed, octave, line), so that all
    windows see parts of the same field, however a scene is cut into windows. Style is drawn once a
    scene, and one table of vectors for regions.

    Attributes:
        margin: Pixels around a window whose noise is needed to interpolate within it.
        align: What lefts, tops and sides of windows must be multiples of.
    """

    def __init__(self, spec: NoiseSpec, seed: int) -> None:
        """Draws what all windows share."""
        self._spec, self._seed = spec, seed
        # One cell of the coarsest octave.
        self.margin = 2 ** (spec.texture - 1) if spec.texture else 0
        self.align = max(1, self.margin)
        rng = np.random.default_rng((seed, 0))
        self._style = rng.standard_normal(spec.style, np.float32)
        self._table = rng.standard_normal(spec.region * REGIONS, np.float32)

    def rows(self, top: int, side: int, width: int) -> list[Floats]:
        """The octaves' random numbers for a row of windows, its margin included.

        Args:
            top: Of the windows, from the top of the first ones, in pixels.
            side: Of the windows.
            width: Of the row.
        """
        return [
            np.stack(
                [
                    self._line(octave, line, (width + 2 * self.margin) >> octave)
                    # Counted from the margin above the first windows.
                    for line in range(top >> octave, (top + side + 2 * self.margin) >> octave)
                ]
            )
            for octave in range(self._spec.texture)
        ]

    def drawn(self, rows: Sequence[Floats], left: int, side: int) -> Floats:
        """The numbers of one window of the row, as `noise_maps` takes them, shape (M,)."""
        last = left + side + 2 * self.margin
        octaves = [numbers[:, left >> k : last >> k].ravel() for k, numbers in enumerate(rows)]
        return np.concatenate([self._style, *octaves, self._table])

    def _line(self, octave: int, line: int, count: int) -> Floats:
        rng = np.random.default_rng((self._seed, 1 + octave, line))
        return rng.standard_normal(count, np.float32)


class SceneRegions:
    """The connected regions of a whole scene, numbered strip by strip.

    A field has one number, and so one look, however many windows it spans. A region's number comes
    from the place of its first pixel. A first pass joins regions across the borders of strips; only
    those are held in memory.
    """

    def __init__(self, labels: ReadRows, height: int) -> None:
        """Makes the first pass over the label map."""
        self._labels, self._height = labels, height
        self._parents: dict[int, int] = {}
        above: tuple[Label, npt.NDArray[np.int64]] | None = None
        for first in track(range(0, height, _STRIP), "Finding the mask's regions"):
            label, parts, starts = self._strip(first)
            if above is not None:
                self._join(*above, label[0], starts[parts[0]])
            above = label[-1], starts[parts[-1]]
        self._numbers = lru_cache(maxsize=4)(self._numbers_of)

    def rows(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Numbers of the regions in some rows, shape (n, W), below `REGIONS`."""
        strips = range(first // _STRIP, (last - 1) // _STRIP + 1)
        numbers = np.concatenate([self._numbers(strip * _STRIP) for strip in strips])
        begin = strips[0] * _STRIP
        return numbers[first - begin : last - begin]

    def _numbers_of(self, first: int) -> npt.NDArray[np.uint8]:
        _, parts, starts = self._strip(first)
        for region in np.unique(parts[[0, -1]]):
            starts[region] = self._root(int(starts[region]))
        return (_mixed(starts) % REGIONS).astype(np.uint8)[parts]

    def _strip(self, first: int) -> tuple[Label, npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Label map and regions of a strip, and the place of the first pixel of each region."""
        label = self._labels(first, min(first + _STRIP, self._height))
        parts = region_map(label)
        starts = np.empty(int(parts.max()) + 1, np.int64)
        place = np.arange(parts.size)[::-1] + first * label.shape[1]
        starts[parts.ravel()[::-1]] = place  # of several values for a region, the last one stays
        return label, parts, starts

    def _join(
        self,
        label_above: Label,
        above: npt.NDArray[np.int64],
        label: Label,
        here: npt.NDArray[np.int64],
    ) -> None:
        """Joins regions of two strips that touch, also at a corner."""
        width = len(label)
        for shift in (-1, 0, 1):
            upper = slice(max(0, shift), width + min(0, shift))
            lower = slice(max(0, -shift), width + min(0, -shift))
            same = label_above[upper] == label[lower]
            pairs = np.stack([above[upper][same], here[lower][same]], 1)
            for first, second in np.unique(pairs, axis=0).tolist():
                roots = sorted((self._root(first), self._root(second)))
                self._parents[roots[1]] = roots[0]

    def _root(self, place: int) -> int:
        path = []
        while (parent := self._parents.get(place, place)) != place:
            path.append(place)
            place = parent
        self._parents.update(dict.fromkeys(path, place))
        return place


def _mixed(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Well-mixed bits of whole numbers (the splitmix64 finaliser)."""
    mixed = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)
