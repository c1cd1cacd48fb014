"""Class losses of a segmenter: measured once on real data, kept beside it."""

import hashlib
import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.dataset import Fit, PairSource, WindowDataset
from geoseg_gan.data.images import MaskReader
from geoseg_gan.data.scan import FolderIndex
from geoseg_gan.errors import UserError, plural
from geoseg_gan.files import write_json
from geoseg_gan.synthesis.filter import ClassLosses
from geoseg_gan.synthesis.recognizer import OnnxSettings, Recognizer


def with_class_losses(
    recognizer: Recognizer,
    path: Path,
    onnx: OnnxSettings,
    index: FolderIndex,
    reader: MaskReader,
    scaling: ImageScaling,
    fit: Fit,
    image_size: int,
) -> Recognizer:
    """A recognizer that knows its mean loss on every class of the real training split.

    They are stored as `<model>.class_losses.json` beside the model, with what they were measured
    on, so that the next call reads them.

    Args:
        recognizer: The segmenter.
        path: Its file.
        onnx: What it expects of its images.
        index: The real training pairs.
        reader: Reads their masks.
        scaling: How their images are brought to it.
        fit: How pictures become windows of `image_size` pixels.
        image_size: Side of the windows in pixels.

    Raises:
        UserError: If the images are not of the kind that the recognizer judges.
    """
    bands = len(scaling.low)
    if (index.bands, index.dtype.name) != (bands, scaling.dtype):
        raise UserError(
            f"{index.pairs[0].image} has {plural(index.bands, 'band')} of {index.dtype}, but "
            f"{path} is to judge {plural(bands, 'band')} of {scaling.dtype}. Set data_root to the "
            "data that the generator was trained on."
        )
    store = path.with_name(f"{path.name}.class_losses.json")
    measured = {
        "segmenter": recognizer.digest,
        "channels": list(recognizer.channels),
        "onnx": asdict(onnx),
        "scaling": asdict(scaling),
        "palette": reader.palette.to_dict(),
        "images": _digest([(p.image.name, p.image.stat().st_size) for p in index.pairs]),
        "pixels": index.pixels.sum(0).tolist(),
        "fit": fit,
        "image_size": image_size,
    }
    key = _digest(measured)
    known = _stored(store)
    if key not in known:
        losses = ClassLosses(reader.palette.num_classes)
        source = PairSource(index.pairs, reader)
        windows = WindowDataset(source, index.sizes, image_size, fit, once=True)
        for position in track(range(len(windows)), "Measuring losses by class on real data"):
            sample = windows[position]
            image = np.moveaxis(sample["image"].numpy(), 0, -1)
            losses.add(sample["label"], recognizer.logits(image))
        known[key] = measured | {"class_losses": losses.means()}
        try:
            write_json(store, known)
        except OSError as error:
            warnings.warn(f"{store} cannot be written ({error}): not kept.", stacklevel=2)
    return replace(recognizer, class_losses=known[key]["class_losses"])


def _stored(path: Path) -> dict[str, Any]:
    """What was measured before; nothing where the file is none of ours."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
