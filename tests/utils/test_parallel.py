import pytest
import torch
from parallel_runs import RECIPES, Ranks, train, train_as_rank

from geoseg_gan.utils.distributed import launch


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes came to, by recipe: `ranks(recipe)`."""
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


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_have_the_gradients_of_one(ranks, recipe, tmp_path):
    whole = train(recipe, tmp_path)
    for found in ranks(recipe):
        assert_same_gradients(found, whole)


@pytest.mark.parametrize("recipe", RECIPES)
def test_ranks_and_their_averages_stay_bit_equal(ranks, recipe):
    first, second = (found["state"] for found in ranks(recipe))
    assert any(name.startswith("average.") for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_logged_figures_are_means_over_all_processes(ranks, recipe, tmp_path):
    whole = train(recipe, tmp_path)["figures"]
    first, second = (found["figures"] for found in ranks(recipe))
    assert first == second
    for name in ("d", "g"):
        # Three steps of Adam make more of rounding than one step's gradients do.
        terms = [key for key in whole if key.startswith(f"{name}/") and "accuracy" not in key]
        assert terms
        for key in terms:
            assert first[key] == pytest.approx(whole[key], rel=0.02, abs=0.02), key


@pytest.mark.parametrize("recipe", ["hinge", "varied", "oasis"])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(recipe, parts, tmp_path):
    whole = train(recipe, tmp_path)
    assert_same_gradients(train(recipe, tmp_path, accumulate=parts), whole)


def test_accumulation_over_two_processes_is_exact_too(ranks, tmp_path):
    whole = train("oasis", tmp_path)
    first, second = ranks("oasis_accumulated")
    assert_same_gradients(first, whole)
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
