"""The model card: the README.md that the Hugging Face Hub shows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from geoseg_gan.models.loaded import LoadedGenerator, LoadedSegmenter
from geoseg_gan.utils.errors import plural
from geoseg_gan.utils.tables import as_markdown, markdown_table, percent

_TRAINING = {
    "data_root": "data folder",
    "image_size": "image size in pixels",
    "bs": "batch size",
    "lr": "learning rate",
    "inner_share": "share of the training tiles held out",
    "seed": "seed",
}
"""Settings of a training that the card shows, and their titles."""

_SEGMENTER_CODE = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("segmenter.onnx")
LOW, HIGH = np.float32({low}), np.float32({high})


def predict(image):  # (H, W, {bands}) {dtype}; H and W multiples of {stride}
    values = (np.float32(image) - LOW) * 2 / (HIGH - LOW) - 1
    (probabilities,) = session.run(None, {{"image": values.transpose(2, 0, 1)[None]}})
    return probabilities[0].argmax(0)  # class IDs
"""

_GENERATOR_CODE = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("generator.onnx")
STYLE, TEXTURE, REGION = {style}, {texture}, {region}  # channels of noise


def enlarged(x, factor, length, axis):  # linearly; every pixel has unit variance
    last = x.shape[axis] - 1
    at = ((np.arange(length) + 0.5) / factor - 0.5).clip(0, last)
    low, share = at.astype(int), at % 1
    share = share[:, None] if axis == 2 else share
    y = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, last), axis) * share
    return y / np.hypot(1 - share, share)


def make_noise(label, rng):  # class IDs, or numbers of regions, (B, H, W)
    batch, height, width = label.shape
    style = rng.standard_normal((batch, STYLE))
    parts = [np.broadcast_to(style[:, :, None, None], (batch, STYLE, height, width))]
    for octave in range(TEXTURE):
        factor = 2**octave
        x = rng.standard_normal((batch, 1, -(-height // factor), -(-width // factor)))
        parts.append(enlarged(enlarged(x, factor, height, 2), factor, width, 3))
    table = rng.standard_normal((batch, REGION, 256))
    parts.append(np.stack([row[:, own] for row, own in zip(table, label)]))
    return np.concatenate(parts, 1).astype(np.float32)


def generate(label, seed=0):  # (H, W) uint8: class IDs, 255 where unknown; multiples of {stride}
    inputs = {{"label": label[None]}}
    if STYLE + TEXTURE + REGION:
        inputs["noise"] = make_noise(label[None], np.random.default_rng(seed))
    (image,) = session.run(None, inputs)
    return image[0].transpose(1, 2, 0){rounded}  # (H, W, {bands})
"""

_DEEPNESS = """\
In QGIS: load `deepness.onnx` in the [Deepness](https://github.com/PUTvision/qgis-plugin-deepness)
plugin. Classes, scaling{resolution} and tile size are read from the file.
"""


def model_card(
    loaded: LoadedGenerator | LoadedSegmenter,
    licence: str,
    formats: Sequence[str],
    outcome: Mapping[str, Any] | None,
) -> str:
    """A card in Markdown, behind the YAML that the Hub reads.

    Args:
        loaded: The network.
        licence: Of its weights.
        formats: What stands beside the card.
        outcome: What `result.json` of a generator's run holds; None where it is not there.
    """
    is_generator = isinstance(loaded, LoadedGenerator)
    facts, config = loaded.facts, loaded.facts.config
    kind = "generator" if is_generator else "segmenter"
    front = {
        "license": licence,
        "library_name": "geoseg-gan",
        "pipeline_tag": "image-to-image" if is_generator else "image-segmentation",
        "tags": ["remote-sensing", "aerial-imagery", "semantic-segmentation", kind]
        + (["onnx"] if "onnx" in formats else []),
    }
    does = (
        "Generates aerial images from label maps."
        if is_generator
        else "Finds the class of every pixel of aerial images."
    )
    data = config.get("data", {})
    gsd = data.get("gsd")
    images = f"{plural(len(facts.scaling.low), 'band')} of {facts.scaling.dtype}"
    images += f", {gsd:g} m a pixel" if gsd else ", resolution not stated"
    if facts.palette.ignore:
        images += f"; ignored colours: {', '.join(map(_hex, facts.palette.ignore))}"
    classes = [
        (number, as_markdown(entry.name), _hex(entry.color))
        for number, entry in enumerate(facts.palette.classes)
    ]
    lines = [
        *("---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", ""),
        *(f"# Geoseg-GAN {kind}", "", does, "", "## Data", "", f"Images: {images}.", ""),
        *markdown_table(("ID", "class", "colour"), classes),
        *("", "Images of other sensors, resolutions or regions may not work.", "", "## Use", ""),
        *(_use(loaded, formats), "## Figures", ""),
        *(_figures(loaded, outcome), "", "## Training", ""),
        *markdown_table(("setting", "value"), _training(loaded)),
        *("", f"Licence: {licence}", ""),
    ]
    return "\n".join(lines)


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _use(loaded: LoadedGenerator | LoadedSegmenter, formats: Sequence[str]) -> str:
    """How to run it, by the files that are there."""
    scaling, is_generator = loaded.facts.scaling, isinstance(loaded, LoadedGenerator)
    parts = []
    if "safetensors" in formats:
        load = (
            'image = gg.load_generator("model.safetensors")(label, seed=0)  # (H, W) class IDs'
            if is_generator
            else 'label = gg.load_segmenter("model.safetensors")(image)  # (H, W, bands)'
        )
        parts += ["```python", "import geoseg_gan as gg", "", load, "```", ""]
    if "onnx" not in formats:
        return "\n".join(parts or ["The weights are not part of this folder.", ""])
    shown: dict[str, Any] = {"bands": len(scaling.low), "dtype": scaling.dtype}
    if isinstance(loaded, LoadedGenerator):
        spec, whole = loaded.network.noise, scaling.dtype.startswith(("u", "i"))
        shown |= {"stride": loaded.network.stride}
        shown |= {"style": spec.style, "texture": spec.texture, "region": spec.region}
        cast = f".astype(np.{scaling.dtype})"
        code = _GENERATOR_CODE.format(**shown, rounded=f".round(){cast}" if whole else cast)
    else:
        from geoseg_gan.models.segmenters import segmenter_stride

        shown |= {"low": list(scaling.low), "high": list(scaling.high)}
        code = _SEGMENTER_CODE.format(**shown, stride=segmenter_stride(loaded.network))
    parts += ["With ONNX Runtime alone:", "", "```python", code + "```", ""]
    if not is_generator:
        gsd = loaded.facts.config.get("data", {}).get("gsd")
        parts.append(_DEEPNESS.format(resolution=", resolution" if gsd else ""))
    return "\n".join(parts)


def _figures(loaded: LoadedGenerator | LoadedSegmenter, outcome: Mapping[str, Any] | None) -> str:
    """The measured figures as a table."""
    about = ""
    if isinstance(loaded, LoadedSegmenter):
        figures: Mapping[str, Any] = loaded.evaluation.scores
        about = "`val`: real validation tiles; `inner`: training tiles that were held out."
    else:
        figures = (outcome or {}).get("figures", {})
        if outcome is not None:
            about = "The last figures of the training that it comes from."
    rows = [
        (name, f"{percent(value)} %" if "iou" in name or "agreement" in name else f"{value:.4g}")
        for name, value in figures.items()
        if value is not None and math.isfinite(value)
    ]
    if not rows:
        return "None were measured."
    return "\n".join([about, "", *markdown_table(("figure", "value"), rows)])


def _training(loaded: LoadedGenerator | LoadedSegmenter) -> list[tuple[str, Any]]:
    """How it was trained, as titles and values."""
    config = loaded.facts.config
    if isinstance(loaded, LoadedGenerator):
        networks = ", ".join(config["model"][key]["name"] for key in ("generator", "discriminator"))
    else:
        networks = " on ".join(config["segmenter"][key] for key in ("arch", "encoder"))
    rows: list[tuple[str, Any]] = [("network", networks), ("epochs", loaded.epoch)]
    rows += [(title, config[key]) for key, title in _TRAINING.items() if key in config]
    if config.get("synthetic") and config.get("synthetic_ratio"):
        rows.append(("share of synthetic pairs", config["synthetic_ratio"]))
    return [*rows, ("checkpoint (SHA-256)", loaded.digest)]
