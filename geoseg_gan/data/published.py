"""Published data sets that scripts/prepare.py turns into data folders: where and how they lie.

What their masks hold stands in configs/data, with the sources of all facts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Download:
    """The class of torchgeo.datasets that downloads and verifies a set, and the calls it takes."""

    name: str
    calls: tuple[Mapping[str, Any], ...] = ({},)  # keyword arguments of each


@dataclass(frozen=True)
class PublishedSet:
    r"""How the files of one published data set lie when it is downloaded and unpacked.

    Paths are relative to the folder of the download and may have further folders before them, as
    archives are unpacked in one way or another.

    Attributes:
        title: The set's name.
        page: Where it is described and found.
        files: What to download.
        licence: Its licence, and whether that forbids commercial use.
        bands: The bands of the images in their order.
        layout: Patterns of paths as in shells, each of which some file must match.
        images: Regular expressions of the paths of images. Of several, a later one only finds the
            images that the earlier ones have not found. Named groups are the fields of `stem` and
            `group`.
        masks: The same of masks; an image and its mask have the same stem.
        stem: The name of a pair, such as "{scene}_{name}".
        group: Its location group.
        val: Regular expression of the images of the published validation split.
        test: The same of images that are left out, since the set keeps them for tests.
        lists: Files that list the names of training and of validation images, in place of `val`.
        tile_size: Side in pixels of the tiles to cut; None where images are tiles already.
        grey_bands: To how many equal bands grey images among coloured ones are widened.
        download: How torchgeo downloads it; None where it cannot.
    """

    title: str
    page: str
    files: str
    licence: str
    bands: str
    layout: tuple[str, ...]
    images: tuple[str, ...]
    masks: tuple[str, ...]
    stem: str
    group: str
    val: str | None = None
    test: str | None = None
    lists: tuple[str, str] | None = None
    tile_size: int | None = None
    grey_bands: int = 1
    download: Download | None = None


_POTSDAM_VAL = (
    "2_13|2_14|3_13|3_14|4_13|4_14|4_15|5_13|5_14|5_15|6_13|6_14|6_15|7_13"  # the contest's test
)
_VAIHINGEN_VAL = "2|4|6|8|10|12|14|16|20|22|24|27|29|31|33|35|38"  # the contest's test
_FLAIR_VAL = "D004_2021|D014_2020|D029_2021|D031_2019|D058_2020|D066_2021|D067_2021|D077_2021"
_DRONEDEPLOY_VAL = (
    "ec09336a6f|679850f980|c8a7031e5f|6b82bcd67b|cc4b443c7d|12c3372a95|941cb687d3|42ab9f9e27|"
    "264c36d368|954a8c814c|ea607f191d|600023a2df|57426ebe1e|cd5a0d3ce4|3731e901b0|f0c32df5a8|"
    "1476907971|97c4dd388d|f78c4e5748|a11d963a7d|aef48b9aca|9170479165|3bb457cde8|a1199a489f|"
    "137f4dfb89|551063e3c5|37cf2e5706|74d7796531|46b27f92c2|32052d9b97"
)
_DRONEDEPLOY_TEST = (
    "12fa5e614f|feb7a50f10|c2e8370ca3|55ca10d9f1|5ab849ec40|9254c82db0|168ac179d9|6f93b9026b|"
    "8b0ac1fc28|1553539551|7310356a1b|632de91030|2f7aabb6e5|18072ccb69|8710b98ea0|fb74c54103|"
    "25f1c24f30|39e77bedd0|e87da4ebdb|546f85625a|e1d3e6f6ba|eee7d707d4|3ff76e84d5|a0a6f46099|"
    "420d6b69b8|d06b2c67d2|107f24d6e9|36d5956a21|1726eb08ef|dabec5e872"
)

PUBLISHED = {
    "landcover_ai": PublishedSet(
        title="LandCover.ai",
        page="https://landcover.ai.linuxpolska.com",
        files="landcover.ai.v1.zip",
        licence="CC BY-NC-SA 4.0: no commercial use",
        bands="red, green, blue",
        layout=("images/*.tif", "masks/*.tif"),
        images=(r"images/(?P<name>[^/]+)\.tif",),
        masks=(r"masks/(?P<name>[^/]+)\.tif",),
        stem="{name}",
        group="{name}",
        tile_size=512,
        download=Download("LandCoverAIGeo"),
    ),
    "loveda": PublishedSet(
        title="LoveDA",
        page="https://github.com/Junjue-Wang/LoveDA",
        files="Train.zip and Val.zip (https://zenodo.org/records/5706578)",
        licence="CC BY-NC-SA 4.0: no commercial use",
        bands="red, green, blue",
        layout=tuple(
            f"{split}/{scene}/{part}_png/*.png"
            for split in ("Train", "Val")
            for scene in ("Urban", "Rural")
            for part in ("images", "masks")
        ),
        images=(r"(Train|Val)/(?P<scene>Urban|Rural)/images_png/(?P<name>\d+)\.png",),
        masks=(r"(Train|Val)/(?P<scene>Urban|Rural)/masks_png/(?P<name>\d+)\.png",),
        stem="{scene}_{name}",
        group="{scene}_{name}",
        val="Val/(Urban|Rural)/images_png/",
        download=Download("LoveDA", ({"split": "train"}, {"split": "val"})),
    ),
    "openearthmap": PublishedSet(
        title="OpenEarthMap",
        page="https://open-earth-map.org",
        files="OpenEarthMap_wo_xBD.zip (https://zenodo.org/records/7223446); its readme.txt says "
        "how to add the images of xBD, without which their labels are left out",
        licence="CC BY-NC-SA 4.0: no commercial use",
        bands="red, green, blue",
        layout=("train.txt", "val.txt", "*/images/*.tif", "*/labels/*.tif"),
        images=(r"(?P<region>[^/]+)/images/(?P<name>[^/]+)\.tif",),
        masks=(r"(?P<region>[^/]+)/labels/(?P<name>[^/]+)\.tif",),
        stem="{name}",
        group="{region}",
        lists=("train.txt", "val.txt"),
    ),
    "deepglobe": PublishedSet(
        title="DeepGlobe Land Cover",
        page="https://www.kaggle.com/datasets/balraj98/deepglobe-land-cover-classification-dataset",
        files="the whole set",
        licence="the challenge's terms, not confirmed: read them before commercial use",
        bands="red, green, blue",
        layout=("*_sat.jpg", "*_mask.png"),
        images=(r"(?<!valid/)(?<!test/)(?P<name>\d+)_sat\.jpg",),
        masks=(r"(?P<name>\d+)_mask\.png",),
        stem="{name}",
        group="{name}",
    ),
    "potsdam": PublishedSet(
        title="ISPRS Potsdam",
        page="https://www.isprs.org/education/benchmarks/UrbanSemLab/default.aspx",
        files="2_Ortho_RGB.zip (or 4_Ortho_RGBIR.zip), 5_Labels_all.zip and "
        "5_Labels_for_participants.zip",
        licence="no licence is stated; for research: ask ISPRS before commercial use",
        bands="red, green, blue (and near infrared in 4_Ortho_RGBIR)",
        layout=("top_potsdam_*_RGB*.tif", "top_potsdam_*_label*.tif"),
        images=(
            r"top_potsdam_(?P<name>\d+_\d+)_RGB\.tif",
            r"top_potsdam_(?P<name>\d+_\d+)_RGBIR\.tif",
        ),
        masks=(
            # First, since 4_12 of 5_Labels_all is a picture (torchgeo's issue 1727).
            r"5_Labels_for_participants/top_potsdam_(?P<name>\d+_\d+)_label\.tif",
            r"5_Labels_all/top_potsdam_(?P<name>\d+_\d+)_label\.tif",
            r"top_potsdam_(?P<name>\d+_\d+)_label\.tif",
            r"top_potsdam_(?P<name>\d+_\d+)_label_noBoundary\.tif",
        ),
        stem="potsdam_{name}",
        group="{name}",
        val=rf"top_potsdam_({_POTSDAM_VAL})_",
        tile_size=512,
    ),
    "vaihingen": PublishedSet(
        title="ISPRS Vaihingen",
        page="https://www.isprs.org/education/benchmarks/UrbanSemLab/default.aspx",
        files="ISPRS_semantic_labeling_Vaihingen.zip and "
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip",
        licence="no licence is stated; for research: ask ISPRS before commercial use",
        bands="near infrared, red, green",
        layout=("top/top_mosaic_09cm_area*.tif", "top_mosaic_09cm_area*.tif"),
        images=(r"top/top_mosaic_09cm_(?P<name>area\d+)\.tif",),
        masks=(
            r"gts_for_participants/top_mosaic_09cm_(?P<name>area\d+)\.tif",
            r"(?<!top/)top_mosaic_09cm_(?P<name>area\d+)\.tif",
            r"top_mosaic_09cm_(?P<name>area\d+)_noBoundary\.tif",
        ),
        stem="vaihingen_{name}",
        group="{name}",
        val=rf"_area({_VAIHINGEN_VAL})\.tif",
        tile_size=512,
    ),
    "flair": PublishedSet(
        title="FLAIR",
        page="https://huggingface.co/datasets/IGNF/FLAIR",
        files="the ZIP files of data/train-val (or flair_aerial_train and flair_labels_train)",
        licence="Licence Ouverte 2.0 (etalab): commercial use is allowed",
        bands="red, green, blue, near infrared, elevation",
        layout=("D*_*/*Z*_*/*IMG_*.tif", "D*_*/*Z*_*/*MSK_*.tif"),
        images=(
            r"(?P<domain>D\d{3}_\d{4})/(.*/)?(?P<area>Z\d+_[A-Z]+)/(.*/)?IMG_(?P<name>\d+)\.tif",
        ),
        masks=(
            r"(?P<domain>D\d{3}_\d{4})/(.*/)?(?P<area>Z\d+_[A-Z]+)/(.*/)?MSK_(?P<name>\d+)\.tif",
        ),
        stem="{domain}_{area}_{name}",
        group="{domain}",
        val=rf"(^|/)({_FLAIR_VAL})/",
        test=r"[_-]test/",
    ),
    "isaid": PublishedSet(
        title="iSAID",
        page="https://captain-whu.github.io/iSAID/dataset.html",
        files="the semantic masks of train and val, and the images of DOTA-v1.0 "
        "(https://captain-whu.github.io/DOTA/dataset.html)",
        licence="academic use only, by the terms of DOTA: no commercial use",
        bands="red, green, blue (grey images are widened)",
        layout=tuple(
            f"{split}/*{name}"
            for split in ("train", "val")
            for name in ("images/P????.png", "P????_instance_color_RGB.png")
        ),
        images=(r"(train|val)/(.*/)?images/(?P<name>P\d+)\.png",),
        masks=(r"(train|val)/(.*/)?(?P<name>P\d+)_instance_color_RGB\.png",),
        stem="{name}",
        group="{name}",
        val="(^|/)val/",
        tile_size=512,
        grey_bands=3,
    ),
    "chesapeake": PublishedSet(
        title="Chesapeake Land Cover (CVPR 2019)",
        page="https://lila.science/datasets/chesapeakelandcover",
        files="cvpr_chesapeake_landcover.zip, whole or some states",
        licence="not confirmed: see the page",
        bands="red, green, blue, near infrared",
        layout=tuple(
            f"*_1m_201?_extended-debuffered-{split}_tiles/*_{layer}.tif"
            for split in ("train", "val")
            for layer in ("naip-new", "lc")
        ),
        images=(
            r"(?P<state>[a-z]{2})_1m_201\d_extended-debuffered-\w+_tiles/(?P<name>\w+)_naip-new\.tif",
        ),
        masks=(
            r"(?P<state>[a-z]{2})_1m_201\d_extended-debuffered-\w+_tiles/(?P<name>\w+)_lc\.tif",
        ),
        stem="{state}_{name}",
        group="{name}",
        val="-val_tiles/",
        test="-test_tiles/",
        tile_size=512,
        download=Download("ChesapeakeCVPR"),
    ),
    "dronedeploy": PublishedSet(
        title="DroneDeploy",
        page="https://github.com/dronedeploy/dd-ml-segmentation-benchmark",
        files="dataset-sample or dataset-medium, which train.py of that repository downloads",
        licence="none is stated: ask DroneDeploy before commercial use",
        bands="red, green, blue",
        layout=("images/*-ortho.tif", "labels/*-label.png"),
        images=(r"images/(?P<name>[^/]+)-ortho\.tif",),
        masks=(r"labels/(?P<name>[^/]+)-label\.png",),
        stem="{name}",
        group="{name}",
        val=f"images/({_DRONEDEPLOY_VAL})_",
        test=f"images/({_DRONEDEPLOY_TEST})_",
        tile_size=512,
    ),
    "dubai": PublishedSet(
        title="Dubai (MBRSC, labelled by Humans in the Loop)",
        page="https://www.kaggle.com/datasets/humansintheloop/"
        "semantic-segmentation-of-aerial-imagery",
        files="the whole set",
        licence="CC0 1.0: commercial use is allowed",
        bands="red, green, blue",
        layout=("images/*image_part_*.jpg", "masks/*image_part_*.png"),
        images=(
            r"Tile (?P<tile>\d)/images/(?P<name>image_part_\d+)\.jpg",
            r"images/tile(?P<tile>\d)_(?P<name>image_part_\d+)\.jpg",
        ),
        masks=(
            r"Tile (?P<tile>\d)/masks/(?P<name>image_part_\d+)\.png",
            r"masks/tile(?P<tile>\d)_(?P<name>image_part_\d+)\.png",
        ),
        stem="tile{tile}_{name}",
        group="tile{tile}_{name}",
        val="image_part_00[789]",  # the set has no split; see docs/data.md
        tile_size=256,
    ),
}
"""The sets by what `data=` calls them."""
