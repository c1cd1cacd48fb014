import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.evaluation.agreement import (
    agreement,
    composition_pairs,
    diversity,
    feature_distance,
    layer_distance,
    noise_distances,
    predicted_confusion,
    real_diversity,
)
from geoseg_gan.evaluation.images import ImageSet
from geoseg_gan.models.checkpoints import RunFacts
from geoseg_gan.models.loaded import LoadedGenerator
from geoseg_gan.models.pretrained.features import Lite0Features
from geoseg_gan.models.registry import build_generator
from geoseg_gan.synthesis.recognizer import Recognizer

CPU = torch.device("cpu")
SCALING = ImageScaling([0, 0, 0], [255, 255, 255])


def image_set(labels, pixels=None, groups=None):
    labels = np.asarray(labels, np.uint8)
    if pixels is None:
        pixels = np.repeat(labels[..., None] * 100, 3, 3)
    names = np.arange(len(labels)).astype(str)
    return ImageSet(pixels, labels, labels, names, np.array(groups or names))


def by_value():
    """Sees class v / 100 where the first band is v."""

    def predict(pixels):
        return F.one_hot((pixels[:, 0] // 100).long(), 3).permute(0, 3, 1, 2).float()

    return Recognizer("", None, predict, [0, 1, 2])


def test_agreement_counts_over_all_images_by_class():
    images = image_set([[[0, 0], [1, 1]], [[0, 1], [1, 255]]])
    images.pixels[0, 1] = 0  # class 1 generated as class 0
    found = agreement(predicted_confusion(by_value(), images, 3, batch_size=1), ["a", "b", "c"])
    assert found["classes"]["a"] == pytest.approx(3 / 5)
    assert found["classes"]["b"] == pytest.approx(2 / 4)
    assert math.isnan(found["classes"]["c"])
    assert found["miou"] == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert found["pixel_accuracy"] == pytest.approx(5 / 7)


@pytest.fixture
def small_generator(tiny_config, palette):
    """A small generator: `small_generator(**settings)`."""

    def build(**settings):
        torch.manual_seed(0)
        network = build_generator(tiny_config["model"]["generator"] | settings, 3, 3).eval()
        return LoadedGenerator(network, RunFacts({}, palette, SCALING), 1, "")

    return build


def measure(generator, images, variants=2):
    rows = list(range(len(images)))
    settings = {"variants": variants, "seed": 0, "device": CPU}
    found = noise_distances(Lite0Features(3), generator, images.labels, rows, **settings)
    return diversity(found, generator)


def test_a_generator_with_noise_varies(small_generator):
    images = image_set(np.arange(3).repeat(32 * 32).reshape(3, 32, 32))
    found = measure(small_generator(), images)
    assert found["features"] > 0 and found["layers"] > 0
    assert found["masks"] == 3 and not found["deterministic"]


def test_a_generator_without_noise_is_reported_as_what_it_is(small_generator):
    images = image_set(np.zeros((2, 32, 32)))
    found = measure(
        small_generator(style_channels=0, region_channels=0, texture_octaves=0), images, variants=3
    )
    assert found["features"] == found["layers"] == 0
    assert found["deterministic"]


def test_real_diversity_compares_tiles_of_like_composition_and_other_groups():
    rng = np.random.default_rng(0)
    labels = np.zeros((4, 32, 32), np.uint8)
    labels[2:] = 1
    pixels = rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    pixels[2] = pixels[0]  # like nothing of its own composition
    network = Lite0Features(3)
    images = image_set(labels, pixels, ["a", "b", "a", "b"])
    found = real_diversity(network, images, SCALING, 2, CPU)
    assert found["pairs"] == 2 and found["layers"] > 0 and found["features"] > 0
    same = image_set(labels, np.repeat(pixels[:1], 4, 0), ["a", "b", "a", "b"])
    assert real_diversity(network, same, SCALING, 2, CPU)["layers"] == pytest.approx(0, abs=1e-6)


def test_one_real_tile_has_nothing_to_differ_from():
    found = real_diversity(Lite0Features(3), image_set(np.zeros((1, 32, 32))), SCALING, 2, CPU)
    assert found["pairs"] == 0 and math.isnan(found["layers"])


def maps(*pixels):
    """One map of two channels and a row of pixels."""
    return torch.tensor(pixels, dtype=torch.float32).T[None, :, None]


def test_layer_distance_by_hand():
    # Unit vectors at a right angle differ by 2, equal ones by 0, opposite ones by 4.
    assert layer_distance([maps((1, 0))], [maps((0, 1))]).tolist() == [2]
    assert layer_distance([maps((1, 0))], [maps((-1, 0))]).tolist() == [4]
    # (3, 4) is (0.6, 0.8): 0.4^2 + 0.8^2 = 0.8. The mean over space with an equal pixel is 0.4.
    found = layer_distance([maps((1, 0), (5, 0))], [maps((3, 4), (1, 0))])
    assert found.tolist() == pytest.approx([0.4])


def test_layers_count_alike_whatever_their_size_and_none_may_be_missing():
    large, small = torch.ones(1, 3, 8, 8), maps((1, 0))
    with pytest.raises(ValueError, match="shorter"):
        layer_distance([large], [])
    assert layer_distance([large, small], [large, maps((0, 1))]).tolist() == [1]


def test_layer_distance_is_of_each_pair_in_a_batch():
    torch.manual_seed(0)
    first = [torch.randn(3, 4, 5, 5), torch.randn(3, 8, 2, 2)]
    second = [first[0].clone(), first[1].clone()]
    second[0][1] += 1
    found = layer_distance(first, second)
    assert found.shape == (3,)
    assert found[0] == found[2] == 0 and found[1] > 0


def test_empty_features_are_at_no_distance_and_give_no_nan():
    nothing = [torch.zeros(1, 4, 3, 3)]
    assert layer_distance(nothing, nothing).tolist() == [0]


def test_feature_distance_by_hand():
    first = torch.tensor([[1.0, 0], [2, 0], [1, 0]])
    second = torch.tensor([[0.0, 3], [5, 0], [-1, 0]])
    assert feature_distance(first, second).tolist() == pytest.approx([2**0.5, 0, 2])


def test_the_most_alike_tiles_of_different_groups_are_paired_first():
    shares = np.array([[1, 0], [1, 0], [0.9, 0.1], [0, 1], [0.3, 0.7]])
    groups = ["a", "a", "b", "a", "b"]
    # 0 and 1 are equal but of one group; 0 comes before 1, and takes 2. 4 is nearest to 3.
    assert composition_pairs(shares, groups, 9) == [(0, 2), (3, 4)]
    assert composition_pairs(shares, groups, 1) == [(0, 2)]


def test_tiles_of_the_only_group_are_paired_with_each_other_and_one_tile_with_none():
    shares = np.array([[1, 0], [0, 1], [0.9, 0.1]])
    assert composition_pairs(shares, ["a"] * 3, 5) == [(0, 2)]
    assert composition_pairs(shares[:1], ["a"], 3) == []


def test_no_tile_is_in_two_pairs():
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 21)
    pairs = composition_pairs(shares, [str(row % 4) for row in range(21)], 100)
    members = [row for pair in pairs for row in pair]
    assert len(members) == len(set(members)) and len(pairs) >= 8
    assert all(one % 4 != other % 4 for one, other in pairs)
