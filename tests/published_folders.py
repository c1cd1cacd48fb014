"""Tiny made-up downloads in the layouts of published data sets, written without the package.

Names, folders, file kinds, bands, values and colours are those of the sets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

Value = int | tuple[int, int, int]
IGNORE = "ignore"


@dataclass(frozen=True)
class Tiny:
    """One set: what is drawn.

    Attributes:
        pairs: Path of the image, path of the mask and split ("train", "val", "test" for those that
            are left out, or "drawn"), by stem.
        legend: What masks hold, by class name or "ignore"; a list where some classes have several.
        bands: Of the images.
        alone: Images without a mask.
        texts: Other files and their content.
        changes: Values in place of those of the legend, in the masks of some stems.
    """

    pairs: Mapping[str, tuple[str, str, str]]
    legend: Sequence[tuple[str, Value]]
    bands: int = 3
    alone: Sequence[str] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def draw(name: str, folder: Path, size: int = 64) -> dict[str, np.ndarray]:
    """Draws a set into a folder, its pictures 1 km apart.

    Returns the class names of all pixels of each pair, by stem.
    """
    tiny = TINIES[name]
    names = np.array([name for name, _ in tiny.legend])
    values = np.array([value for _, value in tiny.legend], np.uint8)
    drawn = {}
    for number, (stem, (image, mask, _)) in enumerate(tiny.pairs.items()):
        rows, columns = np.mgrid[:size, :size]
        indices = (rows // 4 * 5 + columns // 2 + number) % len(names)
        drawn[stem] = names[indices]
        pixels = values[indices]
        if name == "deepglobe":  # whose colours are not pure
            pixels = np.where(pixels > 127, 250, 4).astype(np.uint8)
        left = 1_000.0 * number  # no two show the same ground
        palette_mode = name == "dubai" and number == 1
        _write(folder / mask, pixels, palette_mode, left)
        bands = 1 if name == "isaid" and number == 1 else tiny.bands
        _write(folder / image, _picture(indices, bands, number), left=left)
    for number, image in enumerate(tiny.alone):
        _write(folder / image, _picture(np.zeros((size, size), int), tiny.bands, number))
    for path, text in tiny.texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    if name == "potsdam":  # as its 4_12 is
        _write(folder / "5_Labels_all/top_potsdam_4_12_label.tif", _picture(indices, 3, 0))
    return drawn


def _picture(indices: np.ndarray, bands: int, seed: int) -> np.ndarray:
    levels = 40 + indices[..., None] * 9 % 160 + np.arange(bands) * 11
    noise = np.random.default_rng(seed).integers(0, 9, levels.shape)
    return (levels + noise).astype(np.uint8)


def _write(path: Path, pixels: np.ndarray, palette_mode: bool = False, left: float = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(1, 0, 5e5 + left, 0, -1, 5e6)}
        count, height, width = planes.shape
        shape: dict[str, Any] = {"count": count, "height": height, "width": width}
        with rasterio.open(path, "w", driver="GTiff", dtype="uint8", **shape, **place) as target:
            target.write(planes)
        return
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if palette_mode:
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    picture.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def read(path: Path) -> np.ndarray:
    """The pixels of an image, shape (H, W, K), without the package."""
    if path.suffix == ".tif":
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as source:
                return np.moveaxis(source.read(), 0, -1)
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _loveda(split: str, scene: str, name: str) -> tuple[str, str, str]:
    folder = f"{split}/{scene}"
    paths = (f"{folder}/{part}_png/{name}.png" for part in ("images", "masks"))
    return (*paths, split.lower())


def _openearthmap(name: str, split: str) -> tuple[str, str, str]:
    folder = f"OpenEarthMap_wo_xBD/{name.rpartition('_')[0]}"
    return f"{folder}/images/{name}.tif", f"{folder}/labels/{name}.tif", split


def _vaihingen(area: str, masks: str, split: str) -> tuple[str, str, str]:
    name = f"top_mosaic_09cm_{area}.tif"
    return f"ISPRS_semantic_labeling_Vaihingen/top/{name}", f"{masks}/{name}", split


def _potsdam(tile: str, masks: str, split: str) -> tuple[str, str, str]:
    image = f"2_Ortho_RGB/top_potsdam_{tile}_RGB.tif"
    return image, f"{masks}/top_potsdam_{tile}_label.tif", split


def _flair(area: str, number: str, kind: str, split: str) -> tuple[str, str, str]:
    image = f"flair_{kind.format('aerial')}/{area}/img/IMG_{number}.tif"
    return image, f"flair_{kind.format('labels')}/{area}/msk/MSK_{number}.tif", split


def _isaid(split: str, name: str) -> tuple[str, str, str]:
    masks = f"{split}/Semantic_masks/images/images"
    return f"{split}/images/{name}.png", f"{masks}/{name}_instance_color_RGB.png", split


def _chesapeake(tiles: str, name: str, split: str) -> tuple[str, str, str]:
    start = f"cvpr_chesapeake_landcover/{tiles}-{split}_tiles/{name}"
    return f"{start}_naip-new.tif", f"{start}_lc.tif", split


def _dronedeploy(name: str, split: str) -> tuple[str, str, str]:
    folder = "dataset-medium"
    return f"{folder}/images/{name}-ortho.tif", f"{folder}/labels/{name}-label.png", split


def _dubai(tile: int, part: int, split: str) -> tuple[str, str, str]:
    folder = f"Semantic segmentation dataset/Tile {tile}"
    name = f"image_part_{part:03d}"
    return f"{folder}/images/{name}.jpg", f"{folder}/masks/{name}.png", split


_ISPRS: list[tuple[str, Value]] = [
    ("Impervious surfaces", (255, 255, 255)), ("Building", (0, 0, 255)),
    ("Low vegetation", (0, 255, 255)), ("Tree", (0, 255, 0)), ("Car", (255, 255, 0)),
    ("Clutter", (255, 0, 0)), (IGNORE, (0, 0, 0)),
]  # fmt: skip
_DEBUFFERED = "1m_2013_extended-debuffered"

TINIES = {
    "landcover_ai": Tiny(
        {
            name: (f"images/{name}.tif", f"masks/{name}.tif", "drawn")
            for name in ("M-33-20-D-c-4-2", "M-34-55-B-b-4-1", "N-34-61-B-a-1-1")
        },
        [("Background", 0), ("Building", 1), ("Woodland", 2), ("Water", 3), ("Road", 4)],
        texts={"train.txt": "M-33-20-D-c-4-2_0\n", "val.txt": "M-33-20-D-c-4-2_1\n"},
    ),
    "loveda": Tiny(
        {
            "Urban_1366": _loveda("Train", "Urban", "1366"),
            "Rural_0": _loveda("Train", "Rural", "0"),
            "Urban_3514": _loveda("Val", "Urban", "3514"),
            "Rural_2522": _loveda("Val", "Rural", "2522"),
        },
        [
            (IGNORE, 0), ("Background", 1), ("Building", 2), ("Road", 3), ("Water", 4),
            ("Barren", 5), ("Forest", 6), ("Agriculture", 7),
        ],
        alone=["Test/Urban/images_png/5167.png"],
    ),
    "openearthmap": Tiny(
        {
            "aachen_1": _openearthmap("aachen_1", "train"),
            "san_tome_12": _openearthmap("san_tome_12", "train"),
            "aachen_2": _openearthmap("aachen_2", "val"),
        },
        [
            (IGNORE, 0), ("Bareland", 1), ("Rangeland", 2), ("Developed space", 3), ("Road", 4),
            ("Tree", 5), ("Water", 6), ("Agriculture land", 7), ("Building", 8),
        ],
        alone=["OpenEarthMap_wo_xBD/aachen/images/aachen_3.tif"],
        texts={
            # The last is one of xBD, of which there is no image.
            "OpenEarthMap_wo_xBD/train.txt": "aachen_1.tif\nsan_tome_12.tif\nhouston_3.tif\n",
            "OpenEarthMap_wo_xBD/val.txt": "aachen_2.tif\n",
            "OpenEarthMap_wo_xBD/test.txt": "aachen_3.tif\n",
        },
    ),
    "deepglobe": Tiny(
        {
            name: (f"train/{name}_sat.jpg", f"train/{name}_mask.png", "drawn")
            for name in ("119", "2334", "266")
        },
        [
            ("Urban land", (0, 255, 255)), ("Agriculture land", (255, 255, 0)),
            ("Rangeland", (255, 0, 255)), ("Forest land", (0, 255, 0)), ("Water", (0, 0, 255)),
            ("Barren land", (255, 255, 255)), (IGNORE, (0, 0, 0)),
        ],
        alone=["valid/5_sat.jpg", "test/7_sat.jpg"],
        texts={"class_dict.csv": "name,r,g,b\n"},
    ),
    "potsdam": Tiny(
        {
            "potsdam_2_10": _potsdam("2_10", "5_Labels_all", "train"),
            "potsdam_4_12": _potsdam("4_12", "5_Labels_for_participants", "train"),
            "potsdam_2_13": _potsdam("2_13", "5_Labels_all", "val"),
        },
        _ISPRS,
        texts={"2_Ortho_RGB/top_potsdam_2_10_RGB.tfw": "0.05\n"},
    ),
    "vaihingen": Tiny(
        {
            "vaihingen_area1": _vaihingen(
                "area1", "ISPRS_semantic_labeling_Vaihingen/gts_for_participants", "train"
            ),
            "vaihingen_area11": _vaihingen("area11", "ground_truth_COMPLETE", "train"),
            "vaihingen_area2": _vaihingen("area2", "ground_truth_COMPLETE", "val"),
        },
        _ISPRS,
    ),
    "flair": Tiny(
        {
            "D006_2020_Z10_UU_002993": _flair("D006_2020/Z10_UU", "002993", "{}_train", "train"),
            "D007_2020_Z44_FF_004991": _flair("D007_2020/Z44_FF", "004991", "{}_train", "train"),
            "D004_2021_Z1_NN_000001": _flair("D004_2021/Z1_NN", "000001", "{}_train", "val"),
            "D012_2019_Z1_UN_061946": _flair("D012_2019/Z1_UN", "061946", "1_{}_test", "test"),
        },
        [
            ("Building", 1), ("Pervious surface", 2), ("Impervious surface", 3), ("Bare soil", 4),
            ("Water", 5), ("Coniferous", 6), ("Deciduous", 7), ("Brushwood", 8), ("Vineyard", 9),
            ("Herbaceous vegetation", 10), ("Agricultural land", 11), ("Plowed land", 12),
            ("Swimming pool", 13), ("Snow", 14), ("Clear cut", 15), ("Mixed", 16),
            ("Ligneous", 17), ("Greenhouse", 18), ("Other", 19),
        ],
        bands=5,
    ),
    "isaid": Tiny(
        {
            "P0002": _isaid("train", "P0002"),
            "P0010": _isaid("train", "P0010"),
            "P0003": _isaid("val", "P0003"),
        },
        [
            ("Background", (0, 0, 0)), ("Ship", (0, 0, 63)), ("Storage tank", (0, 63, 63)),
            ("Baseball diamond", (0, 63, 0)), ("Tennis court", (0, 63, 127)),
            ("Basketball court", (0, 63, 191)), ("Ground track field", (0, 63, 255)),
            ("Bridge", (0, 127, 63)), ("Large vehicle", (0, 127, 127)),
            ("Small vehicle", (0, 0, 127)), ("Helicopter", (0, 0, 191)),
            ("Swimming pool", (0, 0, 255)), ("Roundabout", (0, 191, 127)),
            ("Soccer ball field", (0, 127, 191)), ("Plane", (0, 127, 255)),
            ("Harbor", (0, 100, 155)),
        ],
        alone=["train/Instance_masks/images/images/P0002_instance_id_RGB.png"],
    ),
    "chesapeake": Tiny(
        {
            f"{tiles[:2]}_{name}": _chesapeake(f"{tiles}_{_DEBUFFERED}", name, split)
            for tiles, name, split in (
                ("de", "m_3807502_nw_18_1", "train"),
                ("de", "m_3807503_se_18_1", "train"),
                ("ny", "m_4207624_ne_18_1", "val"),
                ("de", "m_3807505_sw_18_1", "test"),
            )
        },
        [
            (IGNORE, 0), ("Water", 1), ("Tree canopy", 2), ("Low vegetation", 3), ("Barren", 4),
            ("Impervious", 5), ("Road", 6), (IGNORE, 15),
        ],
        bands=4,
    ),
    "dronedeploy": Tiny(
        {
            "1d4fbe33f3_F1BE1D4184INSPIRE": _dronedeploy("1d4fbe33f3_F1BE1D4184INSPIRE", "train"),
            "1553627230_APIGENERATED": _dronedeploy("1553627230_APIGENERATED", "train"),
            "ec09336a6f_06BA0AF311OPENPIPELINE": _dronedeploy(
                "ec09336a6f_06BA0AF311OPENPIPELINE", "val"
            ),
            "12fa5e614f_53197F206FOPENPIPELINE": _dronedeploy(
                "12fa5e614f_53197F206FOPENPIPELINE", "test"
            ),
        },
        [
            ("Building", (230, 25, 75)), ("Clutter", (145, 30, 180)),
            ("Vegetation", (60, 180, 75)), ("Water", (245, 130, 48)),
            ("Ground", (255, 255, 255)), ("Car", (0, 130, 200)), (IGNORE, (255, 0, 255)),
        ],
        texts={"dataset-medium/index.csv": "0 1d4fbe33f3_F1BE1D4184INSPIRE\n"},
    ),
    "dubai": Tiny(
        {
            "tile1_image_part_001": _dubai(1, 1, "train"),
            "tile2_image_part_001": _dubai(2, 1, "train"),
            "tile1_image_part_008": _dubai(1, 8, "val"),
        },
        [
            ("Building", (60, 16, 152)), ("Land", (132, 41, 246)), ("Road", (110, 193, 228)),
            ("Vegetation", (254, 221, 58)), ("Water", (226, 169, 41)), (IGNORE, (155, 155, 155)),
            (IGNORE, (0, 0, 0)),
        ],
        texts={"Semantic segmentation dataset/classes.json": "{}"},
    ),
}  # fmt: skip
"""The sets by the names of their configs."""
