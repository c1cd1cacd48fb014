"""Every generator and segmenter of the configs agrees with its ONNX model."""

import pytest
import torch
from torch import nn

from geoseg_gan.config import plain
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.export.onnx_models import (
    TOLERANCE,
    GeneratorModel,
    SegmenterModel,
    largest_difference,
    to_onnx,
)
from geoseg_gan.models.checkpoints import RunFacts, SegmenterEvaluation
from geoseg_gan.models.loaded import LoadedGenerator, LoadedSegmenter
from geoseg_gan.models.registry import build_generator
from geoseg_gan.models.segmenters import build_segmenter
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.messages import choices

SIXTEEN_BITS = ImageScaling([100, 0, 20, 5], [3000, 4000, 900, 800], "uint16")


def generator_model(settings, palette, scaling=SIXTEEN_BITS):
    torch.manual_seed(0)
    network = build_generator(settings, palette.num_classes, len(scaling.low))
    network.requires_grad_(False)
    for module in network.modules():  # statistics as after training, which are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return GeneratorModel(LoadedGenerator(network, RunFacts({}, palette, scaling), 1, ""))


def check(model, opset=17, sizes=((1, 2, 3), (3, 4, 2))):
    exported = to_onnx(model, opset)
    assert exported.opset_import[0].version == opset
    assert largest_difference(exported.SerializeToString(), model, sizes) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("model/generator"))
def test_every_generator_agrees_with_its_model(name, composed, palette):
    settings = composed("train", f"model/generator={name}").model.generator
    check(generator_model(settings, palette))


def segmenter_model(settings, palette):
    torch.manual_seed(0)
    network = build_segmenter(plain(settings), 3, 4).requires_grad_(False)
    facts = RunFacts({}, palette, SIXTEEN_BITS)
    return SegmenterModel(LoadedSegmenter(network, facts, SegmenterEvaluation([], {}), 1, ""))


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("segmenter"))
def test_every_segmenter_agrees_with_its_model(name, composed, palette):
    check(segmenter_model(composed("train_segmenter", f"segmenter={name}").segmenter, palette))


@pytest.mark.parametrize("scale", [2, 1.5])
def test_a_segmenter_that_rescales_its_images_agrees_too(scale, composed, tiny_segmenter, palette):
    config = composed("train_segmenter", *tiny_segmenter, f"segmenter.image_scale={scale}")
    check(segmenter_model(config.segmenter, palette))


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 19, 20])
def test_every_opset_that_is_offered_works(opset, tiny_config, palette):
    check(generator_model(tiny_config["model"]["generator"], palette), opset)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["instance", "pixel"])
@pytest.mark.parametrize("edges", [False, True])
def test_other_norms_and_edges_agree_too(norm, edges, composed, palette):
    settings = dict(composed("train", "model/generator=spade_light").model.generator)
    check(generator_model(settings | {"norm": norm, "edges": edges}, palette))


def test_a_generator_without_noise_has_no_input_for_it(tiny_config, palette):
    none = {"style_channels": 0, "region_channels": 0, "texture_octaves": 0}
    model = generator_model(tiny_config["model"]["generator"] | none, palette)
    assert model.names == ("label", "image")
    check(model)


def test_what_differs_is_found(tiny_config, palette):
    model = generator_model(tiny_config["model"]["generator"], palette)
    content = to_onnx(model, 17).SerializeToString()
    model.network.head.bias.data += 0.01
    assert largest_difference(content, model) > TOLERANCE


def test_a_network_that_cannot_be_exported_is_refused_in_one_line(tiny_config, palette):
    class Odd(nn.Module):
        def forward(self, one_hot, noise):
            return torch.special.bessel_j0(one_hot)  # which ONNX lacks

    model = generator_model(tiny_config["model"]["generator"], palette)
    model.network = Odd()
    with pytest.raises(UserError, match=r"cannot be exported to ONNX .*out of formats") as caught:
        to_onnx(model, 17)
    assert "\n" not in str(caught.value)
