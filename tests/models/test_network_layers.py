import pytest
import torch

from geoseg_gan.data.batch import one_hot_of
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.models.generators.spade import Clade, Spade
from geoseg_gan.models.layers import (
    PixelNorm,
    SpectralNorm,
    condition_channels,
    condition_of,
    convolution,
    edge_map,
    update_spectral_norms,
)


def one_hot(*rows, classes=2):
    return one_hot_of(torch.tensor(rows, dtype=torch.uint8).unsqueeze(0), classes)


def test_outlines_lie_on_both_sides_of_a_border():
    mask = one_hot([0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0])
    expected = [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert edge_map(mask)[0, 0].tolist() == expected


def test_ignored_pixels_have_an_outline_the_picture_s_border_and_other_images_none():
    mask = one_hot([0, 0, 0, IGNORE, IGNORE], [0, 0, 0, IGNORE, IGNORE])
    assert edge_map(mask)[0, 0].tolist() == [[0, 0, 1, 1, 0]] * 2
    masks = torch.cat([one_hot([0, 1], [0, 0]), one_hot([1, 1], [1, 1])])
    assert edge_map(masks).flatten(1).tolist() == [[1, 1, 0, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_outlines_keep_size_and_dtype(size):
    mask = torch.ones(2, 3, *size, dtype=torch.bfloat16)
    outlines = edge_map(mask)
    assert outlines.shape == (2, 1, *size) and outlines.dtype == torch.bfloat16


@pytest.mark.parametrize("edges", [False, True])
def test_a_condition_holds_the_classes_the_unknown_and_outlines(edges):
    mask = one_hot([0, 1, IGNORE, IGNORE])
    condition = condition_of(mask, edges)
    assert condition.shape[1] == condition_channels(2, edges)
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 0]]
    assert condition[0, :, 0].tolist() == expected[: 3 + edges]


def test_pixel_norm_gives_each_pixel_a_root_mean_square_of_one():
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    expected = torch.tensor([3.0, 4.0]) / 12.5**0.5
    torch.testing.assert_close(PixelNorm()(x).flatten(), expected)


@pytest.mark.parametrize(("kernel", "stride", "side"), [(1, 1, 9), (3, 1, 9), (3, 2, 5), (4, 2, 4)])
def test_a_convolution_keeps_the_size_or_divides_it_by_its_stride(kernel, stride, side):
    layer = convolution(2, 3, kernel, stride=stride)
    assert layer(torch.zeros(1, 2, 9, 9)).shape == (1, 3, side, side)


def test_spectral_norm_divides_weights_by_their_greatest_stretch():
    torch.manual_seed(0)
    layer = convolution(4, 8, 3, spectral_norm=True)
    for _ in range(30):
        update_spectral_norms(layer)
    stretch = torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
    assert stretch == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(8, 6, 3, 2), (8, 6, 1, 1), (1, 6, 4, 4), (8, 1, 3, 3)])
@pytest.mark.parametrize("half", [False, True])
def test_a_spectral_norm_and_its_gradient_are_those_of_the_formula(shape, layout, half):
    torch.manual_seed(0)
    weight = torch.randn(shape).to(memory_format=layout).requires_grad_()
    norm, upstream = SpectralNorm(weight), torch.randn(shape)
    for _ in range(2):
        matrix, u, v = weight.flatten(1), norm._u.clone(), norm._v.clone()
        expected = weight / (u @ (matrix @ v))
        with torch.autocast("cpu", torch.bfloat16, half):
            found = norm(weight)
        assert found.is_contiguous(memory_format=layout)
        torch.testing.assert_close(found, expected)
        gradients = (torch.autograd.grad(each, weight, upstream)[0] for each in (found, expected))
        torch.testing.assert_close(*gradients)
        # Away from the singular vectors, but not so far that the norm is near 0.
        norm._v.copy_(torch.nn.functional.normalize(v + 0.02 * torch.randn(v.shape), dim=0))
    u, v = norm._u.clone(), norm._v
    norm.update(weight)
    torch.testing.assert_close(v, torch.nn.functional.normalize(matrix.mT @ u, dim=0))
    torch.testing.assert_close(norm._u, torch.nn.functional.normalize(matrix @ v, dim=0))


def test_clade_looks_up_scale_and_shift_by_class():
    layer = Clade(1, condition_channels(2, edges=False), "instance")
    layer.gamma.weight.data = torch.tensor([0.0, 1, 4]).view(1, 3, 1, 1)
    layer.beta.weight.data = torch.tensor([10.0, 20, 30]).view(1, 3, 1, 1)
    x = torch.tensor([-1.0, 1, -1, 1]).view(1, 1, 1, 4)
    condition = condition_of(one_hot([0, 0, 1, IGNORE]), edges=False)
    expected = torch.tensor([-1.0 + 10, 1 + 10, -2 + 20, 5 + 30])
    torch.testing.assert_close(layer(x, condition).flatten(), expected, atol=1e-3, rtol=0)


def test_spade_scales_and_shifts_what_it_normalised():
    layer = Spade(1, 3, 4, "pixel")
    for convolved, constant in ((layer.gamma, 2.0), (layer.beta, 5.0)):
        torch.nn.init.zeros_(convolved.weight)
        torch.nn.init.constant_(convolved.bias, constant)
    x = torch.tensor([7.0, -7.0]).view(1, 1, 1, 2)  # normalised to 1 and -1
    modulated = layer(x, torch.rand(1, 3, 1, 2)).flatten()
    torch.testing.assert_close(modulated, torch.tensor([3.0 + 5, -3.0 + 5]))
