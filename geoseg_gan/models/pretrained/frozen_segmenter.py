"""A frozen segmenter from which a generator learns."""

from pathlib import Path

import torch
from torch import Tensor

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.palette import Palette
from geoseg_gan.data.synthetic import check_classes
from geoseg_gan.models.checkpoints import load_segmenter
from geoseg_gan.models.segmenters import segmenter_stride
from geoseg_gan.utils.errors import UserError


class FrozenSegmenter:
    """Logits of a frozen segmenter; gradients pass through it to the image.

    It is no `torch.nn.Module`, so that its weights stay out of checkpoints and optimisers, and it
    stays in evaluation mode. It moves to the device of its input.

    Args:
        path: A `segmenter.pt` that train_segmenter wrote.
        palette: Classes of the generator.
        scaling: Of the generator's images.
        size: Side of the generator's images in pixels.

    Raises:
        UserError: If it cannot be read, or is of other classes, bands or sizes.
    """

    def __init__(self, path: Path, palette: Palette, scaling: ImageScaling, size: int) -> None:
        """Reads the weights, on the CPU."""
        if path.suffix.lower() == ".onnx":
            raise UserError(
                f"segmenter_ckpt={path} passes no gradients to a generator: give a segmenter.pt "
                "that train_segmenter wrote, or set loss.segmenter.weight=0."
            )
        # So that the draws of the rest of the run do not depend on whether there is a segmenter.
        with torch.random.fork_rng(devices=[]):
            loaded = load_segmenter(path)
        own = loaded.facts.scaling
        check_classes(palette, loaded.facts.palette, "segmenter_ckpt", path)
        known, made = (f"{len(s.low)}-band {s.dtype}" for s in (own, scaling))
        if known != made:
            raise UserError(
                f"segmenter_ckpt={path} was trained on {known} images, but the generator makes "
                f"{made} ones. Give a segmenter of the same data."
            )
        if size % (stride := segmenter_stride(loaded.network)):
            raise UserError(
                f"segmenter_ckpt={path} takes images whose sides are multiples of {stride}, not "
                f"image_size={size}."
            )
        self._network = loaded.network
        low, high, their_low, their_high = (
            torch.tensor(values).view(1, -1, 1, 1)
            for values in (scaling.low, scaling.high, own.low, own.high)
        )
        # From one scaling to [-1, 1] to the other: 1 and 0 where they are equal.
        self._factor = (high - low) / (their_high - their_low)
        self._shift = (high + low - their_high - their_low) / (their_high - their_low)

    def __call__(self, images: Tensor) -> Tensor:
        """Maps images (B, K, H, W), as the generator scales them, to logits (B, C, H, W)."""
        if self._factor.device != images.device:
            self._network.to(images.device)
            self._factor = self._factor.to(images.device)
            self._shift = self._shift.to(images.device)
        logits: Tensor = self._network((images * self._factor + self._shift).clamp(-1, 1))
        return logits
