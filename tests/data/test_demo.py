from functools import cache

import numpy as np
import pytest

from geoseg_gan.data.demo import scene
from geoseg_gan.data.demo.tile import NUM_CLASSES, draw_tile


@cache
def world():
    tiles = [draw_tile(np.random.default_rng([7, number]), 128) for number in range(60)]
    return np.stack([image for image, _ in tiles]), np.stack([label for _, label in tiles])


def regions_of(class_id):
    """The pixels of a class in each tile that holds at least 200 of them."""
    regions = [image[label == class_id] for image, label in zip(*world(), strict=True)]
    return [region for region in regions if len(region) >= 200]


@pytest.mark.parametrize("size", [16, 101, 256])
def test_every_size_gives_an_image_and_a_mask_of_valid_ids(size):
    image, label = draw_tile(np.random.default_rng(size), size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert label.shape == (size, size) and label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(NUM_CLASSES), 255}
    with pytest.raises(ValueError, match="at least 16"):
        draw_tile(np.random.default_rng(0), 15)


@pytest.mark.slow
def test_classes_are_unbalanced_as_documented():
    labels = world()[1]
    share = np.bincount(labels.ravel(), minlength=256)[:NUM_CLASSES] / labels.size
    assert (
        min(share[scene.CROPLAND], share[scene.FOREST])
        > share[scene.GRASSLAND]
        > share[scene.SETTLEMENT]
    )
    assert 0.02 < share[scene.SETTLEMENT] < 0.10
    assert 0.005 < share[scene.BACKGROUND] < 0.08
    assert 0 < share[scene.SEMINATURAL] < 0.03
    tiles_with_it = (labels == scene.SEMINATURAL).any(axis=(1, 2)).mean()
    assert 0.04 < tiles_with_it < 0.25


@pytest.mark.parametrize("class_id", range(NUM_CLASSES))
def test_every_class_shows_texture_and_looks_different_from_tile_to_tile(class_id):
    regions = regions_of(class_id)
    assert np.median([region.mean(-1).std() for region in regions]) > 3
    assert np.std([region.mean(0) for region in regions], axis=0).max() > 5


def test_no_data_is_black_and_rare():
    images, labels = world()
    assert not images[labels == 255].any()
    assert (labels == 255).any(axis=(1, 2)).mean() < 0.12


def test_colour_tells_classes_apart_but_not_perfectly():
    images, labels = world()
    centres = np.array(
        [np.mean([r.mean(0) for r in regions_of(k)], axis=0) for k in range(NUM_CLASSES)]
    )
    pixels = images[:, ::4, ::4].reshape(-1, 3).astype(float)
    truth = labels[:, ::4, ::4].ravel()
    guess = np.linalg.norm(pixels[:, None] - centres, axis=-1).argmin(1)
    recalls = [(guess[truth == class_id] == class_id).mean() for class_id in range(NUM_CLASSES)]
    assert 1.4 / NUM_CLASSES < np.mean(recalls) < 0.8


def test_image_and_mask_agree_on_where_the_forest_ends():
    images, labels = world()
    dark = 255 - images.mean(-1)
    forest = (labels == scene.FOREST).astype(float)

    def agreement(shift):
        inner = slice(8, -8)
        moved = np.roll(forest, (shift, shift), axis=(1, 2))[:, inner, inner]
        return np.corrcoef(moved.ravel(), dark[:, inner, inner].ravel())[0, 1]

    assert agreement(0) > max(agreement(shift) for shift in (-6, 6))
