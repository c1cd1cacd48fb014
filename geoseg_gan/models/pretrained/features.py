"""Frozen networks whose features metrics compare; they are never trained with."""

from typing import Any

import torch
from torch import Tensor, nn

from geoseg_gan.models.pretrained.lite import LITE0, load_lite
from geoseg_gan.utils.errors import UserError, check_choice

FEATURES = ("lite0", "inception")

MINIMUM_SIZE = 32
"""Smallest height and width in pixels, since Lite0 halves the resolution five times."""


class Lite0Features(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights that are installed with the package.

    Images keep their size: resizing would smooth away the differences between generated and real
    texture (Parmar et al. 2022, "On Aliased Resizing").
    """

    def __init__(self, bands: int) -> None:
        """Builds the network and loads its weights."""
        import timm

        super().__init__()
        self.network: Any = timm.create_model(
            LITE0, pretrained=False, num_classes=0, in_chans=bands
        )
        load_lite(self.network, LITE0, bands)
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def pooled(self, images: Tensor) -> Tensor:
        """The mean over space of the last feature map, (B, 1280) float32.

        Images are in [-1, 1] and at least MINIMUM_SIZE pixels a side.
        """
        features: Tensor = self.network.forward_features(images)
        return features.mean((2, 3)).float()

    @torch.inference_mode()
    def layers(self, images: Tensor) -> list[Tensor]:
        """The feature maps at strides 2, 4, 8, 16 and 32, each (B, C, H / stride, W / stride)."""
        maps: list[Tensor] = self.network.forward_intermediates(images, intermediates_only=True)
        return maps


class InceptionFeatures(nn.Module):
    """Inception-v3 as torch-fidelity and torchmetrics use it, for figures comparable to papers'.

    Raises:
        UserError: If its weights, which come with the first use, cannot be downloaded.
    """

    def __init__(self) -> None:
        """Loads the network."""
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        try:
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except OSError as error:
            raise UserError(
                f"features=inception: its weights cannot be downloaded ({error}). Use "
                "features=lite0, which needs none."
            ) from None
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def pooled(self, images: Tensor) -> Tensor:
        """The features before the classifier, (B, 2048) float32.

        RGB images are in [-1, 1]; the network enlarges them to 299 pixels a side.
        """
        stored = ((images + 1) * 127.5).round().clamp(0, 255).byte()
        features: Tensor = self.network(stored)[0]
        return features.float()


def build_features(name: str, bands: int) -> Lite0Features | InceptionFeatures:
    """Builds one of FEATURES for images of so many bands.

    Raises:
        UserError: If there is no such network, or it does not take images of so many bands.
    """
    check_choice("features", name, FEATURES)
    if name == "lite0":
        return Lite0Features(bands)
    if bands != 3:
        raise UserError(f"features=inception takes RGB images, not {bands} bands. Use lite0.")
    return InceptionFeatures()
