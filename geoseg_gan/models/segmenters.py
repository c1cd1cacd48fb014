"""Segmenters: any architecture and encoder of segmentation-models-pytorch, by name."""

import difflib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from functools import cache
from math import gcd
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoseg_gan.models.pretrained.lite import LITE0, load_lite
from geoseg_gan.models.registry import check_memory, fitting_size
from geoseg_gan.models.settings import SegmenterSettings
from geoseg_gan.utils.errors import UserError, check_choice

PACKAGED_WEIGHTS = "packaged"
"""The encoder weights that are installed with the package."""

_FLIPS = ((0, False), (0, True), (2, False), (2, True))
VIEWS = {
    "none": _FLIPS[:1],
    "flips": _FLIPS,
    "d4": tuple((turns, flip) for turns in range(4) for flip in (False, True)),
}
"""Quarter turns, and whether left and right are mirrored after them, by the name of `tta`."""

_TIMM = "tu-"
"""The prefix of timm's networks in segmentation-models-pytorch."""

_FIXED = {
    "self",
    "encoder_name",
    "encoder_weights",
    "in_channels",
    "classes",
    "kwargs",
    # These two would change the output, which is logits of the image's size and nothing else.
    "activation",
    "aux_params",
}


def check_segmenter(settings: SegmenterSettings, image_size: int) -> int:
    """Refuses, with a UserError, settings that give no network, and images of other sizes.

    Builds the network without memory for its weights; nothing is downloaded.

    Returns:
        What sizes must be multiples of.
    """
    # Cached: building takes a second or more, and a trial checks before each of its runs.
    return _check_built(json.dumps(asdict(settings), sort_keys=True), image_size)


@cache
def _check_built(described: str, image_size: int) -> int:
    settings = SegmenterSettings(**json.loads(described))
    _check_names(settings.arch, settings.encoder, settings.options)
    _check_weights(settings.encoder, settings.encoder_weights)
    # Mix Transformers read values of tensors when they are built.
    device = "cpu" if settings.encoder.startswith("mit_") else "meta"
    with torch.device(device):
        network = build_segmenter(asdict(settings), 2, 3, pretrained=False).eval()
        image = torch.zeros(1, 3, image_size, image_size)
    check_memory(network, "segmenter")
    stride = segmenter_stride(network)
    if image_size % stride:
        scale, times, other = settings.image_scale, "", ""
        if isinstance(network, RescaledSegmenter):
            times, other = f" times segmenter.image_scale={scale:g}", " Or set another scale."
            network = network.network
        raise UserError(
            f"image_size={image_size}{times} is not a multiple of {segmenter_stride(network)}, "
            f"which segmenter.arch={settings.arch} with segmenter.encoder={settings.encoder} "
            f"needs. {fitting_size(image_size, stride)}{other}"
        )
    try:
        with torch.inference_mode():
            shape = tuple(network(image).shape)
    except Exception as error:  # the libraries raise exceptions of many types for sizes
        raise _unfit(
            settings.arch, settings.encoder, f" at image_size={image_size}", error
        ) from error
    if shape != (1, 2, image_size, image_size):
        raise UserError(
            f"segmenter.arch={settings.arch} with segmenter.options={settings.options} gives "
            f"logits of {shape[-2]}x{shape[-1]} for images of {image_size}x{image_size}. Adapt its "
            "depth or upsampling."
        )
    return stride


def segmenter_stride(network: nn.Module) -> int:
    """The number of pixels that a segmenter's image sides must be multiples of."""
    if isinstance(network, RescaledSegmenter):
        # So that the rescaled sides are multiples of the stride inside.
        inner = segmenter_stride(network.network) * network.scale.denominator
        return inner // gcd(inner, network.scale.numerator)
    return int(cast(Any, network).encoder.output_stride)


class RescaledSegmenter(nn.Module):
    """A segmenter that sees its images enlarged, or reduced, by bilinear interpolation.

    Attributes:
        network: Gives logits of the rescaled images.
        scale: Rescaled sides are so many times those of the image.
    """

    def __init__(self, network: nn.Module, scale: float) -> None:
        """Wraps a network; `scale` is rounded to a fraction with a denominator of 1000 at most."""
        super().__init__()
        self.network = network
        # Of whole numbers, so that a side that fits has no fraction of a pixel, nor has it in ONNX.
        self.scale = Fraction(scale).limit_denominator(1000)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, K, H, W) in [-1, 1] to logits (B, C, H, W)."""
        sides = images.shape[2:]
        inner = [side * self.scale.numerator // self.scale.denominator for side in sides]
        images = F.interpolate(images, inner, mode="bilinear", align_corners=False)
        logits = self.network(images)
        return F.interpolate(logits, list(sides), mode="bilinear", align_corners=False)


@torch.inference_mode()
def view_probabilities(
    network: nn.Module, images: Tensor, views: Sequence[tuple[int, bool]]
) -> Tensor:
    """Probabilities of the classes, averaged over turned and mirrored views of the images.

    Args:
        network: Gives logits (B, C, S, S).
        images: Shape (B, K, S, S), in [-1, 1].
        views: Some of `VIEWS`.

    Returns:
        Shape (B, C, S, S), float32.
    """
    total = torch.zeros(())
    for turns, flip in views:
        turned = images.rot90(turns, (2, 3))
        shares = network(turned.flip(3) if flip else turned).float().softmax(1)
        total = (shares.flip(3) if flip else shares).rot90(-turns, (2, 3)) + total
    return total / len(views)


@torch.no_grad()
def divide_logits(network: nn.Module, temperature: float) -> None:
    """Divides a segmenter's logits by a number, in the weights of its last convolution."""
    if isinstance(network, RescaledSegmenter):
        network = network.network
    head = cast(nn.Module, network.segmentation_head)
    last = [layer for layer in head.modules() if isinstance(layer, nn.Conv2d)][-1]
    for parameter in last.parameters():
        parameter.div_(temperature)


def build_segmenter(
    settings: Mapping[str, Any], num_classes: int, bands: int, pretrained: bool = True
) -> nn.Module:
    """Builds a segmenter that maps images (B, K, H, W) in [-1, 1] to logits (B, C, H, W).

    Without `pretrained`, for a network whose weights come from a checkpoint, it reads and downloads
    no weights. The settings are the entries of SegmenterSettings.

    Raises:
        UserError: If a setting is not valid, or weights cannot be downloaded.
    """
    # Imported here: it takes seconds, which commands without a segmenter save.
    import segmentation_models_pytorch as smp

    arch, encoder, options = settings["arch"], settings["encoder"], settings["options"]
    weights = settings["encoder_weights"] if pretrained else None
    _check_names(arch, encoder, options)
    _check_weights(encoder, weights)
    source = {"encoder_name": encoder, "encoder_weights": weights}
    if weights == PACKAGED_WEIGHTS:
        source["encoder_weights"] = None
    elif weights is not None and encoder.startswith(_TIMM):
        source = {"encoder_name": f"{encoder}.{weights}", "encoder_weights": True}
    try:
        network = smp.create_model(
            arch, in_channels=bands, classes=num_classes, **source, **options
        )
    except Exception as error:  # the libraries and downloads raise exceptions of many types
        raise _unfit(arch, encoder, "", error) from error
    if weights == PACKAGED_WEIGHTS:
        load_lite(network.encoder.model, LITE0, bands)
    # With the channels of a pixel side by side, convolutions are faster on CPUs and tensor cores.
    network = network.to(memory_format=torch.channels_last)
    scale = settings["image_scale"]
    return cast(nn.Module, network if scale == 1 else RescaledSegmenter(network, scale))


def _check_names(arch: str, encoder: str, options: Mapping[str, Any]) -> None:
    import segmentation_models_pytorch as smp
    import timm

    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    check_choice("segmenter.arch", arch, architectures)
    taken = inspect.signature(architectures[arch].__init__).parameters.keys() - _FIXED
    for option in options:
        check_choice("segmenter.options", option, sorted(taken))
    names = smp.encoders.get_encoder_names()
    # A tag in a name would choose weights, which is what encoder_weights is for.
    if encoder in names or (
        encoder.startswith(_TIMM) and "." not in encoder and timm.is_model(encoder[len(_TIMM) :])
    ):
        return
    known = [*names, *(_TIMM + name for name in timm.list_models())]
    near = difflib.get_close_matches(encoder, known, 8, cutoff=0)
    raise UserError(
        f"segmenter.encoder={encoder} is not one of {', '.join(near)} and {len(known) - len(near)} "
        "more: the encoders of segmentation-models-pytorch, and tu- with any model of timm."
    )


def _check_weights(encoder: str, weights: str | None) -> None:
    import segmentation_models_pytorch as smp
    import timm

    if weights is None:
        return
    if weights == PACKAGED_WEIGHTS:
        if encoder != _TIMM + LITE0:
            raise UserError(
                f"segmenter.encoder_weights={PACKAGED_WEIGHTS} are those of {_TIMM}{LITE0}, not of "
                f"segmenter.encoder={encoder}. Use null, or the name of weights to download."
            )
        return
    if encoder.startswith(_TIMM):
        names = timm.list_pretrained(encoder[len(_TIMM) :] + ".*")
        known = [name.partition(".")[2] for name in names]
    else:
        known = list(smp.encoders.encoders[encoder]["pretrained_settings"])
    packaged = [PACKAGED_WEIGHTS] if encoder == _TIMM + LITE0 else []
    check_choice("segmenter.encoder_weights", weights, ["null", *packaged, *known])


def _unfit(arch: str, encoder: str, when: str, error: Exception) -> UserError:
    """Puts the several lines of a library's message into one."""
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return UserError(
        f"segmenter.arch={arch} with segmenter.encoder={encoder} does not work{when}: {reason}. "
        "Choose another of the two, or other segmenter.encoder_weights or segmenter.options."
    )
