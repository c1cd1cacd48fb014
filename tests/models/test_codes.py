import pytest
import torch
from small_gan import UNET, build, samples
from torch import nn
from torch.utils.data import default_collate

from geoseg_gan.data.batch import regions_of
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.models.generators.codes import ROWS, TABLE, OwnCodes, StyleCodes

CODED = {**UNET, "style_codes": 4}


def averaging():
    """An encoder whose features are the image's own bands."""
    styles = StyleCodes(3, 3, 3)
    styles.encode = nn.AvgPool2d(2)
    return styles


def drawn(order, blur=0.0):
    """Numbers that choose the rows of the bank in an order, and regions by their size alone."""
    numbers = torch.zeros(1, ROWS + TABLE + 3 * TABLE)
    numbers[0, : len(order)] = torch.tensor(order) + 1.0
    numbers[:, ROWS + TABLE :] = blur
    return numbers


def test_a_code_is_the_mean_of_its_region_by_hand():
    image = torch.zeros(1, 3, 4, 4)
    image[:, 0, :, :2] = 1.0  # region 0: half of it red, half of it blue
    image[:, 2, 2:, :2] = 1.0
    image[:, 0, 2:, :2] = 0.0
    image[:, 1, :, 2:] = 0.3  # region 5: green
    regions = torch.zeros(1, 4, 4, dtype=torch.int32)
    regions[..., 2:] = 5
    table = averaging()(image, regions)
    expected = torch.zeros(3, TABLE)
    expected[[0, 2], 0] = 1.5**0.5  # of mean square 1
    expected[1, 5] = 3**0.5
    torch.testing.assert_close(table[0], expected)


def test_a_code_does_not_depend_on_the_rest_of_the_batch():
    styles = StyleCodes(3, 3, 4)
    images = torch.rand(3, 3, 16, 16)
    regions = torch.arange(16).view(16, 1).expand(3, 16, 16) // 5
    torch.testing.assert_close(styles(images, regions)[1:2], styles(images[1:2], regions[1:2]))


def test_from_the_start_codes_of_unlike_regions_differ_by_more_than_their_noise():
    images = torch.rand(32, 3, 1, 1).expand(-1, -1, 16, 16) * 2 - 1
    regions = torch.zeros(32, 16, 16, dtype=torch.int32)
    for seed in range(5):
        torch.manual_seed(seed)
        codes = StyleCodes(3, 3, 8)(images, regions)[..., 0]
        assert codes.std(0).square().mean().sqrt() > 3 * 0.1


def test_regions_take_codes_of_their_class_and_size_from_one_image_where_it_has_them():
    styles = averaging()
    label = torch.zeros(2, 8, 8, dtype=torch.uint8)  # the second image is all of class 0
    label[0, :, 2:4] = 1
    image = torch.zeros(2, 3, 8, 8)
    image[0, 0, :, :2] = image[0, 1, :, 2:4] = image[0, 2, :, 4:] = image[1, :2] = 1.0
    styles.remember(styles.entries(image, label, regions_of(label)))
    small, middle, large = torch.eye(3) * 3**0.5
    other = torch.tensor([1.5, 1.5, 0]).sqrt()
    wanted = label[:1].clone()
    wanted[:, 6:, 6:] = IGNORE
    regions = regions_of(wanted)
    first = styles.maps(drawn([1, 0]), wanted, regions)[0]
    second = styles.maps(drawn([0, 1]), wanted, regions)[0]
    for codes, (left, right) in ((first, (small, large)), (second, (other, other))):
        torch.testing.assert_close(codes[:, 0, 0], left)
        torch.testing.assert_close(codes[:, 0, 2], middle)  # which the second image lacks
        torch.testing.assert_close(codes[:, 0, 7], right)
        assert not codes[:, 6:, 6:].any()
    absent = torch.full_like(wanted, 2)
    assert not styles.maps(drawn([1, 0]), absent, regions_of(absent)).any()
    assert styles.maps(drawn([1, 0], blur=1.0), absent, regions_of(absent)).min() > 0


def test_images_with_codes_of_their_own_take_nothing_from_the_bank():
    styles, label = averaging(), torch.zeros(2, 4, 4, dtype=torch.uint8)
    own = OwnCodes(torch.full((2, 3, TABLE), 7.0), torch.tensor([True, False]))
    numbers = drawn([0]).expand(2, -1)
    codes = styles.maps(numbers, label, regions_of(label), own)
    assert (codes[0] == 7).all() and not codes[1].any()


def test_the_bank_keeps_the_newest_images():
    styles = averaging()
    for value in range(3):
        styles.remember(torch.full((ROWS // 2, 12, 4), float(value)))
    assert styles.bank[:, 0, 0].unique().tolist() == [1, 2]
    assert int(styles.count) == 3 * ROWS // 2


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_encoder_learns_and_parts_of_a_batch_are_as_the_whole(dtype):
    def step(accumulate):
        module = build(4, generator=CODED, accumulate=accumulate)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            for _ in range(2):  # the second one has codes in the bank
                module.zero_grad()
                module.backward_only(default_collate(samples(4)))
        return module

    whole, parts = step(1), step(2)
    gradients = {n: p.grad for n, p in whole.generator.styles.named_parameters()}
    assert gradients and all(gradient.abs().max() > 0 for gradient in gradients.values())
    assert int(whole.average.styles.count) == 8
    close = {"rtol": 1e-3, "atol": 1e-5} if dtype is None else {"rtol": 0.1, "atol": 0.05}
    torch.testing.assert_close(parts.average.styles.bank, whole.average.styles.bank, **close)
    for name, parameter in parts.generator.styles.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], **close)
