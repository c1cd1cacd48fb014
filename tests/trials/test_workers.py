import pytest

from geoseg_gan.trials import workers
from geoseg_gan.trials.workers import compute_side_by_side


@pytest.fixture
def handed_out(monkeypatch):
    """What processes would get, which are not started: their seeds and their GPU."""
    found = []

    def side_by_side(function, arguments, threads):
        found.extend((seeds, gpu) for _, seeds, _, gpu in arguments)
        return [[("odd", UserWarning)]]

    monkeypatch.setattr(workers, "side_by_side", side_by_side)
    return found


def test_seeds_are_handed_out_in_turn_and_warnings_passed_on(trial_config, tmp_path, handed_out):
    for devices, seeds in ((2, [0, 1, 4]), (3, [7])):
        with pytest.warns(UserWarning, match="odd"):
            compute_side_by_side(trial_config(tmp_path, f"devices={devices}"), seeds, ["real"])
    assert handed_out == [([0, 4], None), ([1], None), ([7], None)]


@pytest.mark.filterwarnings("ignore:odd")
@pytest.mark.parametrize(("visible", "names"), [(None, ["0", "1"]), ("3, GPU-5e", ["3", "GPU-5e"])])
def test_each_process_has_a_gpu_of_its_own(
    trial_config, tmp_path, handed_out, monkeypatch, visible, names
):
    config = trial_config(tmp_path, "devices=2")
    monkeypatch.setattr(type(config.trainer), "on_gpu", lambda _: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    compute_side_by_side(config, [0, 1], ["real"])
    assert [gpu for _, gpu in handed_out] == names
