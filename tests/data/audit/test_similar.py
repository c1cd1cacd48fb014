import numpy as np
import pytest
from made import texture

from geoseg_gan.data.audit.similar import TURNS, near_duplicates, thumbnail


def thumbnails(images):
    return np.stack([thumbnail(image.mean(-1).astype(np.uint8)) for image in images])


@pytest.mark.parametrize("turn", range(8))
def test_a_changed_copy_is_found_however_it_is_turned(turn):
    images = [texture(seed) for seed in range(12)]
    copy = np.rot90(images[3][:, ::-1] if turn >= 4 else images[3], turn % 4).astype(float)
    noise = np.random.default_rng(0).normal(0, 6, copy.shape)
    images.append((0.8 * copy + 20 + noise).clip(0, 255).astype(np.uint8))
    (match,) = near_duplicates(thumbnails(images))
    assert (match.first, match.second) == (3, 12) and match.correlation > 0.95
    # Turned back the other way: the second image's turn is undone.
    undone = {0: 0, 1: 3, 2: 2, 3: 1}.get(turn, turn)
    assert TURNS[match.turn] == TURNS[undone]


def test_other_images_flat_ones_and_gradients_match_none():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 64)[:, None, None] * np.ones((1, 64, 3))
    images = [texture(seed) for seed in range(30)]
    images += [np.full((64, 64, 3), 99, np.uint8)] * 2
    images += [(ramp + rng.normal(0, 12, (64, 64, 3))).clip(0, 255).astype(np.uint8) for _ in "ab"]
    assert near_duplicates(thumbnails(images)) == []


def test_many_images_in_blocks_give_the_same_matches(monkeypatch):
    images = [texture(seed) for seed in range(20)] + [texture(4), texture(11)]
    whole = near_duplicates(thumbnails(images))
    monkeypatch.setattr("geoseg_gan.data.audit.similar._BLOCK", 7)
    assert near_duplicates(thumbnails(images)) == whole
    assert sorted((m.first, m.second) for m in whole) == [(4, 20), (11, 21)]
