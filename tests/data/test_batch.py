import numpy as np
import pytest
import torch

from geoseg_gan.data.batch import ImageScaling, make_batch, one_hot_of, regions_of
from geoseg_gan.data.scan import FolderIndex


def index_of(low, high, dtype):
    empty = np.zeros((len(low), 1), np.int64)
    return FolderIndex([], empty, empty, empty, np.array(low), np.array(high), np.dtype(dtype))


def stored_tensor(pixels):
    return torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())[None]


EIGHT_BIT = ImageScaling([0.0] * 3, [255.0] * 3)
ALL_16_BIT = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
SIGNED = np.arange(-500, 1501).reshape(29, 69, 1)


@pytest.mark.parametrize(
    ("scaling", "pixels", "atol"),
    [
        (EIGHT_BIT, np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2), 0),
        (ImageScaling([0.0], [65535.0], "uint16"), ALL_16_BIT, 0),
        (ImageScaling([100.0], [30000.0], "uint16"), ALL_16_BIT.clip(100, 30000), 0),
        (ImageScaling([-500.0], [1500.0], "int16"), SIGNED.astype(np.int16), 0),
        (ImageScaling([-500.0], [1500.0], "float32"), SIGNED.astype(np.float32), 1e-3),
    ],
)
def test_every_value_within_the_range_survives_the_round_trip(scaling, pixels, atol):
    scaled = scaling.to_network(stored_tensor(pixels))
    assert scaled.dtype == torch.float32 and scaled.min() == -1 and scaled.max() == 1
    again = scaling.to_stored(scaled[0])
    assert again.dtype == pixels.dtype and again.flags.c_contiguous
    np.testing.assert_allclose(again, pixels, rtol=0, atol=atol)


def test_each_band_has_its_own_range_and_what_lies_outside_is_clamped():
    scaling = ImageScaling([0.0, 100.0], [10.0, 300.0], "uint16")
    image = torch.tensor([[0, 5, 10, 400], [0, 200, 250, 400]], dtype=torch.float32)
    scaled = scaling.to_network(image.view(1, 2, 2, 2))
    assert scaled.view(2, 4).tolist() == [[-1, 0, 1, 1], [-1, 0, 0.5, 1]]


def test_generated_values_are_rounded_and_clamped_to_what_can_be_stored():
    generated = torch.tensor([-3.0, -1.0, -0.999, 0.0, 0.999, 1.0, 7.0]).view(1, 1, 7)
    stored = ImageScaling([0.0], [255.0]).to_stored(generated)
    assert stored.ravel().tolist() == [0, 0, 0, 128, 255, 255, 255]
    # Percentiles between two stored values must not round out of the type.
    stored = ImageScaling([-0.7], [65535.8], "uint16").to_stored(generated[..., [1, 5]])
    assert stored.ravel().tolist() == [0, 65535]
    assert EIGHT_BIT.to_stored(torch.zeros(3, 2, 2).bfloat16()).shape == (2, 2, 3)


def test_scaling_spans_the_outermost_ranges_of_all_images():
    index = index_of([[5.0, 7.0], [3.0, 9.0]], [[50.0, 9.0], [40.0, 90.0]], "uint16")
    assert ImageScaling.fit(index) == ImageScaling([3.0, 7.0], [50.0, 90.0], "uint16")


def test_a_constant_band_is_scaled_without_division_by_zero():
    scaling = ImageScaling.fit(index_of([[5.0, 7.0]], [[50.0, 7.0]], "uint16"))
    pixels = np.full((2, 2, 2), 7, np.uint16)
    scaled = scaling.to_network(stored_tensor(pixels))
    assert torch.isfinite(scaled).all()
    np.testing.assert_array_equal(scaling.to_stored(scaled[0]), pixels)


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_pictures_show_the_first_three_bands_or_the_first_alone(bands):
    scaling = ImageScaling([10.0] * bands, [20.0] * bands, "uint16")
    pixels = np.zeros((1, 3, bands), np.uint16)
    pixels[0, 0] = 15
    pixels[0, 1] = 20 + np.arange(bands)
    picture = scaling.to_rgb(pixels)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[128] * 3, [255] * 3, [0] * 3]]
    pixels[0, 0, 0] = 10
    expected = [0, 128, 128] if bands >= 3 else [0, 0, 0]
    assert scaling.to_rgb(pixels)[0, 0].tolist() == expected


def test_an_8_bit_picture_is_shown_as_it_is():
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(EIGHT_BIT.to_rgb(pixels), pixels)


def test_one_hot_is_one_for_the_class_and_zero_where_ignored():
    label = torch.tensor([[[0, 1, 2], [2, 255, 255]]], dtype=torch.uint8)
    one_hot = one_hot_of(label, 3)
    assert one_hot.dtype == torch.float32 and one_hot.shape == (1, 3, 2, 3)
    expected = torch.cat([torch.eye(3), torch.tensor([[0.0, 0, 1], [0, 0, 0], [0, 0, 0]])])
    assert torch.equal(one_hot[0].flatten(1).T, expected)
    many = torch.arange(254, dtype=torch.uint8).view(1, 1, 254)  # as many as a palette may have
    assert torch.equal(one_hot_of(many, 254)[0, :, 0], torch.eye(254))


def test_regions_are_numbered_within_each_image():
    label = torch.tensor([[[0, 1], [1, 0]], [[2, 2], [2, 255]]], dtype=torch.uint8)
    regions = regions_of(label)
    assert regions.dtype == torch.int32
    assert regions.tolist() == [[[0, 1], [1, 0]], [[0, 0], [0, 1]]]


def test_a_batch_holds_what_networks_take():
    label = torch.tensor([[[0, 255], [1, 1]]], dtype=torch.uint8)
    image = torch.tensor([0, 255, 255, 0] * 3, dtype=torch.uint8).view(1, 3, 2, 2)
    batch = make_batch(
        {"image": image, "label": label, "stem": "a", "group": "g"}, EIGHT_BIT, num_classes=2
    )
    assert batch.image[0, 0].tolist() == [[-1, 1], [1, -1]]
    assert batch.label is label
    assert batch.valid.shape == (1, 1, 2, 2) and batch.valid.tolist() == [[[[1, 0], [1, 1]]]]
    assert torch.equal(batch.one_hot.sum(1, keepdim=True), batch.valid)
