"""Every command in a tiny version, which reads from folders beside the one it runs in."""

import json
import re
import shutil
from functools import partial

import numpy as np
import rasterio
from processes import start
from published_folders import draw

PALETTE = (
    "data.palette=[{name:Background,color:[250,62,119]},{name:Forest land,color:[168,232,84]},"
    "{name:Settlement,color:[255,214,33]}]"
)
NETWORKS = (
    "model.generator.width=4", "model.generator.depth=2", "model.generator.max_width=8",
    "model.discriminator.width=4", "model.discriminator.layers=2", "model.discriminator.scales=1",
)  # fmt: skip
SEGMENTER = (
    "segmenter=unet_resnet34", "segmenter.encoder=mobilenet_v2",
    "+segmenter.options.encoder_depth=3", "+segmenter.options.decoder_channels=[8,8,8]",
    "augment=flips",
)  # fmt: skip
TINY = ("image_size=32", "bs=2", "trainer=cpu")
ALONE = ("data.num_workers=0",)
TRAIN = (
    PALETTE, *NETWORKS, *TINY, "data_root=../data", "out_dir=out", "epochs=3", "inner_share=0.3",
    "loss.augment.adaptive=true", "keep_checkpoints=2",
)  # fmt: skip
TRAIN_SEGMENTER = (
    PALETTE, *SEGMENTER, *TINY, "data_root=../data", "out_dir=out", "epochs=3", "inner_share=0.3",
    "synthetic=../pairs", "mixing.schedule=first",
)  # fmt: skip
GENERATE = ("gen_ckpt=../run/G_e002.pt", "data_root=../data", "save_dir=out", "trainer=cpu", "bs=4")
EVALUATE = (
    "gen_ckpt=../run/G_e002.pt", "data_root=../data", "out_dir=out", "trainer=cpu", "variants=2",
    "num_samples=16",
)  # fmt: skip
TRIAL = (
    PALETTE, *NETWORKS, *SEGMENTER, "image_size=32", "trainer=cpu", "data_root=../data",
    "out_dir=out", "seeds=1", "ratios=[0.5]", "arms=[real,synthetic_0.5]", "inner_share=0.3",
    "train.bs=2", "train.epochs=1", "train.epoch_steps=2", "generate.num_samples=6",
    "generate.tau=0", "train_segmenter.bs=2", "train_segmenter.epochs=1",
    "train_segmenter.epoch_steps=2",
)  # fmt: skip

CASES = {
    "train": ("train", (*TRAIN, *ALONE, "resume=true")),
    "train, default workers": ("train", (*TRAIN, "resume=true")),
    "train, 2 processes": ("train", (*TRAIN, *ALONE, "devices=2", "resume=true")),
    "train_segmenter": ("train_segmenter", (*TRAIN_SEGMENTER, *ALONE, "resume=true")),
    "train_segmenter, default workers": ("train_segmenter", (*TRAIN_SEGMENTER, "resume=true")),
    "generate": ("generate", (*GENERATE, "num_samples=16", "num_workers=0", "layout=folders")),
    "generate, default workers": (
        "generate",
        (*GENERATE, "keep=8", "tau=auto", "segmenter_ckpt=../segmenter/segmenter.pt"),
    ),
    "generate, 2 processes": (
        "generate",
        (*GENERATE, "num_samples=16", "num_workers=0", "devices=2"),
    ),
    "evaluate": ("evaluate", (*EVALUATE, "segmenter_ckpt=../segmenter/segmenter.pt")),
    "predict": (
        "predict",
        (
            "segmenter_ckpt=../segmenter/segmenter.pt",
            "image_path=../data/val/images",
            "out_dir=out",
            "overlap=16",
            "trainer=cpu",
        ),
    ),
    "predict, a scene by ONNX": (
        "predict",
        (
            "segmenter_ckpt=../onnx/segmenter.onnx",
            "image_path=../drawn/images/scene.tif",
            "out_dir=out",
            "trainer=cpu",
        ),
    ),
    "generate, a scene": (
        "generate",
        (*GENERATE[::2], "mask_path=../drawn/masks/scene.tif", "trainer=cpu"),
    ),
    "generate, unlabelled images": (
        "generate",
        (
            "source=unlabelled",
            "unlabelled=../drawn/images",
            "segmenter_ckpt=../segmenter/segmenter.pt",
            "save_dir=out",
            "trainer=cpu",
        ),
    ),
    "tile": ("tile", (PALETTE, "source=../data/train", "data_root=out", "tile_size=16")),
    "tile, polygons": (
        "tile",
        (
            PALETTE,
            "source=../drawn",
            "data_root=out",
            "tile_size=16",
            "split=spatial",
            "block_size=20",
            "gap=2",
            "masks=../drawn/labels.geojson",
            "class_field=kind",
            "background=Background",
        ),
    ),
    "prepare": ("prepare", ("data=loveda", "source=../download", "data_root=out")),
    "check_data": ("check_data", (PALETTE, "data_root=../data", "out_dir=out", "image_size=32")),
    "export": ("export", ("ckpt=../run/G_e002.pt", "out_dir=out")),
    "export, a segmenter": ("export", ("ckpt=../segmenter/segmenter.pt", "out_dir=out")),
    "pack": ("pack", (PALETTE, "data_root=../data", "out_dir=out", "chunk_mb=0.01")),
    "trial": ("trial", (*TRIAL, *ALONE, "generate.num_workers=0")),
    "trial, default workers": ("trial", TRIAL),
    "compare": ("compare", ("folder=out",)),
}
"""Command and settings by name."""

CLOCKS = ("evaluation.md", "trial.md", "log.txt", "synthetic.txt")
"""Files that show how long something took, or whether it went on."""


MADE = {
    "run": ("train", (*TRAIN, *ALONE, "epochs=2")),
    "segmenter": ("train_segmenter", (*TRAIN_SEGMENTER[:-2], *ALONE, "epochs=1")),
    "pairs": ("generate", (*GENERATE, "num_samples=8", "num_workers=0")),
    "onnx": ("export", ("ckpt=../segmenter/segmenter.pt", "out_dir=out", "formats=[onnx]")),
}
"""What cases read beside the data: command and settings by the folder's name."""


def draw_scene(folder):
    """Draws a georeferenced image, its mask and polygons on the same ground."""
    classes = re.findall(r"name:([\w ]+),color:\[(\d+),(\d+),(\d+)\]", PALETTE)
    colors = np.array([color for _, *color in classes]).astype(np.uint8)
    rows, columns = np.mgrid[:75, :90]
    label = (rows // 20 + columns // 13) % len(classes)
    image = np.random.default_rng(0).integers(0, 256, (3, 75, 90), np.uint8)
    left, top = 500_000, 5_000_000
    where = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, left, 0, -0.5, top)}
    shape = {"height": 75, "width": 90, "count": 3, "dtype": "uint8"}
    for part, pixels in (("images", image), ("masks", np.moveaxis(colors[label], -1, 0))):
        (folder / part).mkdir(parents=True)
        path = folder / part / "scene.tif"
        with rasterio.open(path, "w", driver="GTiff", **shape, **where) as target:
            target.write(pixels)
    features = []
    for number, (name, *_) in enumerate(classes):
        x, y = left + 9 * number, top - 8 * number
        ring = [[x, y], [x + 21, y], [x + 17, y - 19], [x, y]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        feature = {"type": "Feature", "properties": {"kind": name}, "geometry": geometry}
        features.append(feature)
    crs = {"type": "name", "properties": {"name": "EPSG:32633"}}
    content = {"type": "FeatureCollection", "features": features, "crs": crs}
    (folder / "labels.geojson").write_text(json.dumps(content))


DRAWN = {"drawn": draw_scene, "download": partial(draw, "loveda")}
"""What draws other folders that cases read, by name."""


def made(places, part):
    """A folder of `MADE` or `DRAWN` in `places`, or a finished sweep."""
    folder = places / part
    if folder.exists():
        return folder
    if part in DRAWN:
        DRAWN[part](folder)
        return folder
    if part == "sweep":
        for rate in ("0.1", "0.2"):
            job = shutil.copytree(made(places, "run"), folder / f"lr={rate}")
            outcome = json.loads((job / "result.json").read_text())
            (job / "result.json").write_text(json.dumps(outcome | {"objective": float(rate)}))
        return folder
    name, arguments = MADE[part]
    make_parts(places, arguments)
    command = start(name, arguments, places / f"make_{part}")
    assert command.end() == 0, command.texts()
    return (places / f"make_{part}" / "out").rename(folder)


def make_parts(places, arguments):
    """Makes what settings name of `MADE` and `DRAWN`."""
    for part in (*MADE, *DRAWN):
        if any(f"=../{part}" in word for word in arguments):
            made(places, part)


def prepared(places, case, name):
    """A new folder for a case to run in, with what it reads beside it."""
    cwd = places / f"{case}-{name}".replace(", ", "_").replace(" ", "_")
    shutil.rmtree(cwd, ignore_errors=True)
    cwd.mkdir()
    make_parts(places, CASES[case][1])
    if case == "compare":
        shutil.copytree(made(places, "sweep"), cwd / "out")
    return cwd
