"""Frozen pretrained networks whose features GANs are trained with."""

import difflib
from typing import Any

import torch
from torch import Tensor

from geoseg_gan.models.pretrained.lite import LITE2, load_lite
from geoseg_gan.utils.errors import UserError

LITE2_BACKBONE = "lite2"
"""EfficientNet-Lite2, whose weights are installed with the package."""

VGG = "vgg19"
"""The network of published perceptual losses; its weights are downloaded on first use."""

_VGG_LAYERS = (1, 6, 11, 20, 29)
"""Where torchvision's VGG19 holds relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1."""


class Backbone:
    """Feature maps of a frozen network; gradients pass through it to the image.

    Maps are divided by their root mean square on random images with the spectrum of natural ones:
    features of some networks are ten times as large as losses and discriminators expect. VGG's are
    not, since published loss weights belong to them as they are.

    It is no `torch.nn.Module`, so that its weights stay out of checkpoints and optimisers. It is
    built on first use, and moves to the device of its input.

    Args:
        name: LITE2_BACKBONE, VGG, or a convolutional network of timm, whose weights are downloaded.
        bands: K of the images.

    Raises:
        UserError: If there is no such network, or it does not take images of so many bands.
    """

    def __init__(self, name: str, bands: int) -> None:
        """Checks the name; nothing is loaded yet."""
        self.name = name
        self.bands = bands
        self._network: Any = None
        self._scale: tuple[Tensor, Tensor] | None = None
        self._units: list[float] = []
        if name == VGG and bands != 3:
            raise UserError(f"{VGG} takes RGB images, not {bands} bands. Use {LITE2_BACKBONE}.")
        if name not in (LITE2_BACKBONE, VGG):
            import timm  # slow to import

            if not timm.is_model_pretrained(name):
                known = [other for other in timm.list_models() if timm.is_model_pretrained(other)]
                close = difflib.get_close_matches(name, known, 1)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                raise UserError(
                    f"{name} is not {LITE2_BACKBONE}, {VGG} or a network that timm has weights "
                    f"for.{hint}"
                )

    def levels(self) -> list[tuple[int, int]]:
        """Channels and stride in pixels of each feature map, from the finest to the coarsest."""
        if self.name == VGG:
            return [(64, 1), (128, 2), (256, 4), (512, 8), (512, 16)]
        info: Any = self.skeleton().feature_info
        return list(zip(info.channels(), info.reduction(), strict=True))

    def skeleton(self) -> torch.nn.Module:
        """Builds the network on the meta device: shapes only, without memory for weights.

        Raises:
            UserError: If the network has no feature maps.
        """
        with torch.device("meta"):
            network: Any = _vgg(None) if self.name == VGG else self._timm(pretrained=False)
        skeleton: torch.nn.Module = network.eval().requires_grad_(False)
        return skeleton

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The feature maps, from the finest to the coarsest, each (B, c, h, w).

        Args:
            images: Shape (B, K, H, W), in [-1, 1], at least 32 pixels a side. On the meta device no
                weights are loaded.
        """
        if images.is_meta:
            return self._maps(self.skeleton(), images)
        self.load()
        assert self._scale is not None
        shift, scale = self._scale
        if shift.device != images.device:
            self._network.to(images.device)
            shift, scale = self._scale = shift.to(images.device), scale.to(images.device)
        maps = self._maps(self._network, (images - shift) / scale)
        return [found / unit for found, unit in zip(maps, self._units, strict=True)]

    def load(self) -> None:
        """Builds the network on the CPU, unless that was done; the first call does it too.

        Raises:
            UserError: If the weights cannot be loaded.
        """
        if self._network is not None:
            return
        # So that the initial weights of other networks do not depend on when this one is built.
        with torch.random.fork_rng(devices=[]):
            network, mean, deviation = self._load()
        network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._units = self._root_mean_squares(network)
        shift, scale = torch.tensor(mean) * 2 - 1, torch.tensor(deviation) * 2
        self._scale = shift.view(1, -1, 1, 1), scale.view(1, -1, 1, 1)
        self._network = network

    @torch.no_grad()
    def _root_mean_squares(self, network: Any) -> list[float]:
        """What each map is divided by."""
        if self.name == VGG:
            return [1.0] * len(_VGG_LAYERS)
        with torch.autocast("cpu", enabled=False):
            maps = self._maps(network, _natural_noise(self.bands))
        return [float(found.square().mean().sqrt()) for found in maps]

    def _maps(self, network: Any, inputs: Tensor) -> list[Tensor]:
        if self.name != VGG:
            maps: list[Tensor] = network(inputs)
            return maps
        found = []
        for number, layer in enumerate(network):
            inputs = layer(inputs)
            if number in _VGG_LAYERS:
                found.append(inputs)
        return found

    def _timm(self, pretrained: bool) -> Any:
        import timm

        name = LITE2 if self.name == LITE2_BACKBONE else self.name
        try:
            return timm.create_model(
                name, pretrained=pretrained, features_only=True, in_chans=self.bands
            )
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise UserError(
                f"{self.name} gives no feature maps ({' '.join(str(error).split())}). Use "
                f"{LITE2_BACKBONE}, or another network of timm."
            ) from None

    def _load(self) -> tuple[Any, list[float], list[float]]:
        """The network, and the mean and standard deviation of its training images in [0, 1]."""
        import timm

        if self.name == LITE2_BACKBONE:
            network = self._timm(pretrained=False)
            load_lite(network, LITE2, self.bands)
            return network, [0.5], [0.5]
        try:
            if self.name == VGG:
                return _vgg("IMAGENET1K_V1"), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
            network = self._timm(pretrained=True)
        except OSError as error:
            raise UserError(
                f"the weights of {self.name} cannot be downloaded ({' '.join(str(error).split())})."
                f" Use {LITE2_BACKBONE}, which needs no download."
            ) from None
        settings = timm.get_pretrained_cfg(self.name)
        assert settings is not None
        mean, deviation = list(settings.mean), list(settings.std)
        if self.bands != 3:
            mean, deviation = [sum(mean) / 3], [sum(deviation) / 3]
        return network, mean, deviation


def _natural_noise(bands: int) -> Tensor:
    """Fixed random images (8, K, 128, 128) with a natural spectrum and standard deviation 0.5."""
    side = 128
    frequency = torch.fft.fftfreq(side)
    distance = (frequency[:, None].square() + frequency.square()).sqrt().clamp(min=1 / side)
    rng = torch.Generator().manual_seed(0)
    white = torch.fft.fft2(torch.randn(8, bands, side, side, generator=rng))
    images: Tensor = torch.fft.ifft2(white / distance).real
    return images / images.std() / 2


def _vgg(weights: str | None) -> Any:
    """VGG19 up to the last map that is used."""
    from torchvision.models import vgg19

    layers = vgg19(weights=weights).features
    return layers[: _VGG_LAYERS[-1] + 1]
