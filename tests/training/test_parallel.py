"""Two processes, and micro-batches, have the gradients of one process on the whole batch."""

import functools

import pytest
import torch
from parallel_runs import RECIPES, Ranks, train, train_as_rank
from run_folders import assert_same_weights

from geoseg_gan.utils.distributed import launch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process comes to on the whole batch, by recipe: `whole(recipe)`."""
    folder = tmp_path_factory.mktemp("whole")
    return functools.cache(lambda recipe: train(recipe, folder))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes comes to, by recipe: `ranks(recipe)`."""
    folder = tmp_path_factory.mktemp("ranks")
    launch(train_as_rank, Ranks(str(folder)), lambda config: None, share_cores=True)
    return lambda recipe: [
        torch.load(folder / f"{recipe}_{rank}.pt", weights_only=True) for rank in range(2)
    ]


def assert_same_gradients(found, expected):
    """Equal but for rounding, which flips the sign of an absolute difference here and there."""
    for network in "dg":
        mine, theirs = (
            torch.cat([grad.flatten() for grad in gradients["gradients"][network]])
            for gradients in (found, expected)
        )
        assert (mine - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_have_the_gradients_of_one_and_stay_bit_equal(ranks, whole, recipe):
    first, second = ranks(recipe)
    for found in (first, second):
        assert_same_gradients(found, whole(recipe))
    assert any(name.startswith("average.") for name in first["state"])
    assert_same_weights(first["state"], second["state"])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_logged_figures_are_means_over_all_processes(ranks, whole, recipe):
    expected = whole(recipe)["figures"]
    first, second = (found["figures"] for found in ranks(recipe))
    assert first == second
    for name in ("d", "g"):
        # Three steps of Adam make more of rounding than one step's gradients do.
        terms = [key for key in expected if key.startswith(f"{name}/") and "accuracy" not in key]
        assert terms
        for key in terms:
            assert first[key] == pytest.approx(expected[key], rel=0.02, abs=0.02), key


@pytest.mark.parametrize(("recipe", "parts"), [("hinge", 4), ("varied", 2), ("oasis", 4)])
def test_accumulated_gradients_are_those_of_the_whole_batch(whole, recipe, parts, tmp_path):
    assert_same_gradients(train(recipe, tmp_path, accumulate=parts), whole(recipe))


@pytest.mark.slow
def test_accumulation_over_two_processes_is_exact_too(ranks, whole):
    first, second = ranks("oasis_accumulated")
    assert_same_gradients(first, whole("oasis"))
    assert_same_weights(first["state"], second["state"])
