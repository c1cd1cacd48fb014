import pytest
import torch

from geoseg_gan.models.generators.noise import REGIONS, NoiseSpec, sample_noise
from geoseg_gan.models.registry import build_generator
from geoseg_gan.utils.errors import UserError

SPEC = NoiseSpec(style=2, region=3, texture=3)


def one_region(batch, height, width):
    return torch.zeros(batch, height, width, dtype=torch.int32)


def test_noise_depends_on_seed_and_index_alone():
    regions = torch.arange(20, dtype=torch.int32).view(1, 20, 1).expand(2, 20, 24)
    before = torch.get_rng_state()
    together = sample_noise(SPEC, 7, [3, 4], regions)
    assert together.shape == (2, SPEC.channels, 20, 24)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(together[1:], sample_noise(SPEC, 7, [4], regions[1:]))
    assert not torch.equal(together[:1], together[1:])
    assert not torch.equal(together[:1], sample_noise(SPEC, 8, [3], regions[:1]))


def test_every_channel_has_unit_variance():
    spec = NoiseSpec(style=4, region=4, texture=4)
    regions = torch.arange(64, dtype=torch.int32).view(1, 64, 1).expand(400, 64, 64)
    noise = sample_noise(spec, 0, range(400), regions)
    torch.testing.assert_close(noise.std((0, 2, 3)), torch.ones(12), atol=0.08, rtol=0)
    torch.testing.assert_close(noise.mean((0, 2, 3)), torch.zeros(12), atol=0.12, rtol=0)


def test_no_pixel_varies_more_than_another():
    """Enlarged noise would, at the places of its draws, and show a grid in generated images."""
    noise = sample_noise(NoiseSpec(0, 0, 4), 0, range(4000), one_region(4000, 8, 12))
    torch.testing.assert_close(noise.std(0), torch.ones(4, 8, 12), atol=0.06, rtol=0)


def test_style_is_the_same_all_over_an_image():
    noise = sample_noise(SPEC, 0, range(4), one_region(4, 20, 24))
    style = noise[:, :2]
    assert (style == style[..., :1, :1]).all()
    assert len(style[..., 0, 0].unique()) == 8


def test_coarser_octaves_change_more_slowly_from_pixel_to_pixel():
    noise = sample_noise(NoiseSpec(0, 0, 4), 0, range(10), one_region(10, 64, 64))
    assert (noise.diff(dim=-1).abs().mean((0, 2, 3)).diff() < 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_each_region_has_a_vector_of_its_own_wherever_it_lies(dtype):
    regions = torch.tensor([[[0, 0, 1], [2, 1, 1], [2, 0, 0]]], dtype=dtype)
    noise = sample_noise(NoiseSpec(0, 3, 0), 0, [0], regions)[0]
    vectors = [noise[:, regions[0] == number].unique(dim=1) for number in range(3)]
    assert [vector.shape for vector in vectors] == [(3, 1)] * 3
    assert len(torch.cat(vectors).unique()) == 9


def test_regions_beyond_the_table_share_vectors():
    regions = torch.tensor([[[0, 1, REGIONS, REGIONS + 1]]], dtype=torch.int32)
    noise = sample_noise(NoiseSpec(0, 3, 0), 0, [0], regions)[0, :, 0]
    assert torch.equal(noise[:, :2], noise[:, 2:])


def test_other_regions_leave_style_and_texture_as_they_are():
    regions = one_region(1, 16, 16)
    regions[:, :8] = 1
    first = sample_noise(SPEC, 0, [0], regions)
    second = sample_noise(SPEC, 0, [0], one_region(1, 16, 16))
    changed = (first != second).flatten(2).any(2)[0]
    assert changed.tolist() == [False] * 5 + [True] * 3


@pytest.mark.parametrize("setting", ["style_channels", "region_channels", "texture_octaves"])
def test_negative_numbers_are_refused_under_the_settings_names(setting):
    with pytest.raises(UserError, match=rf"^model\.generator\.{setting}=-1: use 0 "):
        build_generator({"name": "unet", setting: -1}, 3, 3)


def test_as_many_region_maps_as_indices_are_needed():
    with pytest.raises(ValueError, match="as many region maps"):
        sample_noise(SPEC, 0, [0, 1], one_region(1, 8, 8))
