import itertools
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torchvision
from choices import settings_of
from defaults import defaults
from torch import nn

from geoseg_gan.models.pretrained import aerial
from geoseg_gan.models.pretrained.aerial import AERIAL, aerial_state, load_aerial
from geoseg_gan.models.pretrained.backbone import Backbone
from geoseg_gan.models.segmenters import build_segmenter, check_segmenter
from geoseg_gan.models.settings import SegmenterSettings
from geoseg_gan.utils.errors import UserError

WIDTHS = (64, 64, 128, 256, 512)
SETTINGS = settings_of("segmenter", "fpn_aerial")


def made_up():
    """Random entries of the published file's names and shapes, with which maps keep their size."""
    rng = np.random.default_rng(0)
    stored = {"embed_dim": np.array([256], np.int32), "fc.bias": np.zeros(256, np.float32)}

    def layer(convolution, norm, inputs, outputs, side):
        spread = (2 / (inputs * side**2)) ** 0.5
        weight = rng.normal(0, spread, (outputs, inputs, side, side))
        stored[f"bb.{convolution}.weight"] = weight.astype(np.float32)
        for name in ("weight", "bias", "running_mean", "running_var"):
            low = -0.5 if name in ("bias", "running_mean") else 0.5
            value = rng.uniform(low, low + 1, outputs).astype(np.float32)
            stored[f"bb.{norm}.{name}"] = value

    layer("stem.0", "stem.1", 3, 64, 3)
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS), 1):
        for number, first in enumerate((inputs, outputs)):
            block = f"layer{stage}.{number}"
            layer(f"{block}.conv1", f"{block}.bn1", first, outputs, 3)
            layer(f"{block}.conv2", f"{block}.bn2", outputs, outputs, 3)
            if first != outputs:
                layer(f"{block}.short.0", f"{block}.short.1", first, outputs, 1)
    return stored


def write_package(folder, **stored):
    """A package of the real one's layout, which cannot be imported."""
    (folder / "geoembed" / "weights").mkdir(parents=True)
    (folder / "geoembed" / "__init__.py").write_text("raise ImportError('no OpenCL')\n")
    path = folder / "geoembed" / "weights" / "v3.npz"
    np.savez(path, **stored)
    return path


@pytest.fixture(scope="module")
def made_up_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made_up")
    write_package(folder, **made_up())
    return folder


@pytest.fixture
def made_up_weights(made_up_folder, monkeypatch):
    monkeypatch.syspath_prepend(made_up_folder)


@pytest.fixture(params=["made up", "published"])
def weights(request):
    """What the file holds: made-up entries, or those of the published package."""
    if request.param == "made up":
        request.getfixturevalue("made_up_weights")
    elif find_spec("geoembed") is None:
        pytest.skip("the package geoembed, of the extra 'aerial', is not installed")
    with np.load(aerial.aerial_file(), allow_pickle=False) as stored:
        return {name: stored[name].astype(float) for name in stored.files}


def windows(x, side, stride, padding):
    """All windows of x (C, H, W) padded with zeros, (C, H / stride, W / stride, side, side)."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    found = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))
    return found[:, ::stride, ::stride]


def convolved(weights, convolution, norm, x, stride):
    """A convolution and the batch normalisation after it, with the statistics of training."""
    kernel = weights[f"bb.{convolution}.weight"]
    side = kernel.shape[-1]
    found = windows(x, side, stride, side // 2)
    x = np.tensordot(kernel, found, ((1, 2, 3), (0, 3, 4)))
    names = ("weight", "bias", "running_mean", "running_var")
    gain, bias, mean, variance = (weights[f"bb.{norm}.{n}"][:, None, None] for n in names)
    return (x - mean) / np.sqrt(variance + 1e-5) * gain + bias


def expected_maps(weights, x):
    """The published network's maps in float64, at every second place of the stem and the next."""
    x = np.maximum(convolved(weights, "stem.0", "stem.1", x, 2), 0)
    maps = [x]
    x = windows(x, 3, 2, 1).max((3, 4))  # of rectified values: the zeros around change nothing
    for stage, number in itertools.product(range(1, 5), range(2)):
        block = f"layer{stage}.{number}"
        stride = 2 if stage > 1 and not number else 1
        y = np.maximum(convolved(weights, f"{block}.conv1", f"{block}.bn1", x, stride), 0)
        y = convolved(weights, f"{block}.conv2", f"{block}.bn2", y, 1)
        if stride == 2:
            x = convolved(weights, f"{block}.short.0", f"{block}.short.1", x, stride)
        x = np.maximum(x + y, 0)
        if number:
            maps.append(x)
    return maps


@pytest.fixture
def image():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.inference_mode()
def test_every_map_of_a_segmenter_s_encoder_is_that_of_the_stored_weights(weights, image):
    found = build_segmenter(SETTINGS, 4, 3).eval().encoder(image)[1:]
    expected = expected_maps(weights, image[0].double().numpy())
    assert [tuple(m.shape[1:]) for m in found] == [m.shape for m in expected]
    for one, other in zip(found, expected, strict=True):
        limit = 1e-5 * other.max()
        torch.testing.assert_close(one[0].double().numpy(), other, atol=limit, rtol=1e-5)
    assert "geoembed" not in sys.modules


@torch.inference_mode()
def test_what_learns_through_it_sees_the_same_maps_apart_from_a_factor(made_up_weights, image):
    encoder = build_segmenter(SETTINGS, 4, 3).eval().encoder
    for one, other in zip(Backbone(AERIAL, 3)(image), encoder(image)[1:], strict=True):
        torch.testing.assert_close(one / one.norm(), other / other.norm(), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("bands", [1, 6])
def test_the_first_layer_answers_to_grey_images_alike_whatever_their_bands(
    bands, made_up_weights, image
):
    def answer(bands):
        network = torchvision.models.resnet18(weights=None)
        network.conv1 = nn.Conv2d(bands, 64, 7, stride=2, padding=3, bias=False)
        load_aerial(network, bands)
        return network.conv1(image[:, :1].expand(-1, bands, -1, -1))

    torch.testing.assert_close(answer(bands), answer(3), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "stored",
    [
        {"bb.stem.0.weight": np.zeros((64, 3, 3, 3), np.float32)},
        {"bb.stem.0.weight": np.array([print])},  # which only pickle restores
        {"bb.stem.0.weight": np.array(["text"])},
        {"other": np.zeros(3)},
    ],
)
def test_a_file_of_another_network_is_refused(stored, monkeypatch, tmp_path):
    write_package(tmp_path, **stored)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"v3.npz does not hold .* Install geoembed==1\.1\.2 again"):
        aerial_state()


def test_a_damaged_file_is_refused(monkeypatch, tmp_path):
    path = write_package(tmp_path, **{"bb.stem.0.weight": np.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"v3.npz does not hold"):
        aerial_state()


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(aerial, "find_spec", lambda name: None)
    settings = defaults(SegmenterSettings, **SETTINGS)
    uses = (
        lambda: check_segmenter(settings, 64),
        lambda: build_segmenter(SETTINGS, 4, 3),
        lambda: Backbone(AERIAL, 3),
    )
    for use in uses:
        with pytest.raises(UserError, match=r"not installed: pip install 'geoseg-gan\[aerial\]'"):
            use()
    with torch.device("meta"):  # its weights come from a checkpoint
        build_segmenter(SETTINGS, 4, 3, pretrained=False)


def test_the_weights_are_refused_for_other_encoders():
    settings = defaults(SegmenterSettings, encoder="resnet34", encoder_weights=AERIAL)
    with pytest.raises(UserError, match=r"weights=aerial are those of resnet18, not .*resnet34"):
        check_segmenter(settings, 64)
