import numpy as np
import pytest
import torch

from geoseg_gan.evaluation.agreement import composition_pairs, feature_distance, layer_distance


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


def test_layers_count_alike_whatever_their_size():
    large, small = torch.ones(1, 3, 8, 8), maps((1, 0))
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


def test_layers_that_are_missing_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        layer_distance([torch.ones(1, 2, 2, 2)], [])


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


def test_tiles_of_the_only_group_are_paired_with_each_other():
    shares = np.array([[1, 0], [0, 1], [0.9, 0.1]])
    assert composition_pairs(shares, ["a"] * 3, 5) == [(0, 2)]


def test_no_tile_is_in_two_pairs():
    shares = np.random.default_rng(0).dirichlet(np.ones(3), 21)
    pairs = composition_pairs(shares, [str(row % 4) for row in range(21)], 100)
    members = [row for pair in pairs for row in pair]
    assert len(members) == len(set(members)) and len(pairs) >= 8
    assert all(one % 4 != other % 4 for one, other in pairs)


def test_one_tile_has_no_pair():
    assert composition_pairs(np.ones((1, 2)), ["a"], 3) == []
