"""Larger runs: learning rates of larger batches, several machines, networks trained further."""

import subprocess
import sys

import pytest
import torch
from parallel_runs import free_port
from run_folders import REPO, weights

from geoseg_gan.models.loaded import load_generator
from geoseg_gan.training.train import train
from geoseg_gan.utils.errors import UserError


def test_the_rate_grows_with_the_batch_where_asked(tmp_path, make_folder, composed, tiny):
    root = make_folder(tmp_path / "data")
    asked = ["epochs=1", "lr=1e-3", "base_bs=2", "bs=8", "accumulate=2", "scale_lr=linear"]
    asked += ["optimizer.schedule=constant", f"data_root={root}", f"out_dir={tmp_path / 'run'}"]
    config = composed("train", *tiny, *asked)
    assert train(config)["lr/g"] == pytest.approx(4e-3)
    config.scale_lr = "none"
    assert config.scaled_lr == 1e-3


@pytest.mark.parametrize("experiment", ["refine", "cpu_refine"])
def test_a_second_training_needs_a_first_one(experiment, composed, tmp_path):
    with pytest.raises(UserError, match=r"init_from=G_e###.pt does not exist"):
        train(composed("train", f"experiment={experiment}", f"out_dir={tmp_path / 'run'}"))


@pytest.fixture
def train_on(trained, composed, tiny, tmp_path):
    """Trains the networks of the trained run further: `train_on("setting=value")`."""
    root, first = trained
    paths = (f"data_root={root}", f"out_dir={tmp_path / 'again'}", "epochs=1")
    start = f"init_from={first}"

    def call(*asked, base=tiny):
        train(composed("train", *base, *paths, start, *asked))
        return tmp_path / "again"

    return call


def test_a_run_starts_from_both_networks_of_another_at_another_size(trained, train_on):
    out_dir = train_on("image_size=64", "lr=1e-9")
    for before, after in (("G_e002.pt", "G_e001.pt"), ("D_e002.pt", "D_e001.pt")):
        old, new = weights(trained[1] / before), weights(out_dir / after)
        for name, value in old.items():
            if not name.endswith(("_u", "_v")):  # the estimates of norms go on
                torch.testing.assert_close(new[name], value, atol=1e-6, rtol=0)
    config = load_generator(out_dir / "G_e001.pt").facts.config
    assert (config["image_size"], config["init_from"]) == (64, str(trained[1] / "G_e002.pt"))


def test_without_a_discriminator_beside_it_a_new_one_is_trained(trained, train_on):
    (trained[1] / "D_e002.pt").unlink()
    with pytest.warns(UserWarning, match="D_e002.pt does not exist: the discriminator starts"):
        train_on()


def test_networks_of_other_settings_or_classes_are_refused(train_on, tiny, tmp_path):
    with pytest.raises(UserError, match=r"has model.generator.width=4, not 6. Give its settings"):
        train_on("model.generator.width=6")
    renamed = [o.replace("Settlement", "Town") for o in tiny]
    with pytest.raises(UserError, match=r"was trained on other classes"):
        train_on(base=renamed)
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("projected", "patch"), (None, "projected")])
def test_a_discriminator_may_get_and_lose_a_head_beside_it(
    before, after, tmp_path, make_folder, composed, tiny
):
    root = make_folder(tmp_path / "data")

    def run(out_dir, beside, *asked):
        network = ["model/discriminator=oasis", "model.discriminator.width=4"]
        network += ["model.discriminator.depth=2", f"loss={'both' if beside else 'oasis'}"]
        network += [f"model.discriminator.{beside}=4"] if beside else []
        own = [o for o in tiny if not o.startswith(("model.discriminator.", "model/discriminator"))]
        paths = [f"data_root={root}", f"out_dir={out_dir}"]
        train(composed("train", *own, *network, "epochs=1", *paths, *asked))
        return weights(out_dir / "D_e001.pt")

    first = tmp_path / "first"
    old = run(first, before)
    new = run(tmp_path / "second", after, f"init_from={first / 'G_e001.pt'}", "lr=1e-9")
    assert {name.split(".")[0] for name in new} ^ {name.split(".")[0] for name in old} == {
        beside for beside in (before, after) if beside
    }
    for name in new:
        if not name.startswith(f"{after}.") and not name.endswith(("_u", "_v")):
            torch.testing.assert_close(new[name], old[name], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_two_nodes_under_torchrun_train_one_run(tmp_path, make_folder, tiny):
    """Two agents of one process each stand for two machines."""
    root, port = make_folder(tmp_path / "data"), free_port()
    common = [o for o in tiny if not o.startswith("trainer=")]
    common += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.num_nodes=2", "epochs=1"]
    common += [f"data_root={root}", f"out_dir={tmp_path / 'run'}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    launcher += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    agents = [
        subprocess.Popen(
            [*launcher, f"--node_rank={node}", str(REPO / "scripts" / "train.py"), *common],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    printed = [agent.communicate(timeout=120) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert sum(out.count("Epoch 1: saved samples and checkpoints.") for out, _ in printed) == 1
    assert len(list((tmp_path / "run").glob("events.out*"))) == 1
