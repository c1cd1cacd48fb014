"""Every choice of every group, and every pair of networks, trains."""

import math
from pathlib import Path

import pytest
from defaults import defaults

from geoseg_gan.models.discriminators.oasis import EXTRA_DISCRIMINATORS
from geoseg_gan.models.loaded import load_generator
from geoseg_gan.models.settings import ModelSettings
from geoseg_gan.training.train import check_networks, train
from geoseg_gan.training.train_segmenter import train_segmenter
from geoseg_gan.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"

NOISE = {"style_channels": 2, "region_channels": 2, "texture_octaves": 2}
TINY_NETWORKS = {
    "unet": {"width": 4, "depth": 2, "max_width": 8, **NOISE},
    "spade": {"width": 4, "depth": 2, "max_width": 8, "hidden": 4, **NOISE},
    "patch": {"width": 4, "layers": 2, "scales": 1},
    "oasis": {"width": 4, "depth": 2, "max_width": 8},
    "projected": {"width": 4, "mixed": 4},
}
SMALL = (
    "image_size=32", "bs=2", "epochs=1", "epoch_steps=2", "data.num_workers=0",
    "precision=32-true",  # measuring which is faster takes as long as all else
)  # fmt: skip
WORLD = ("data.demo.train_tiles=2", "data.demo.val_tiles=1", "data.demo.tile_size=64")

pytestmark = pytest.mark.slow  # test_config builds every choice in the default set


def choices(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


UNPUBLISHED = [
    name
    for name in choices("data")
    if f"published: {name}" not in (CONFIGS / "data" / f"{name}.yaml").read_text()
]
"""Others train on folders of their own in tests/data/test_prepare.py."""


def loss_for(discriminator):
    family = discriminator.split("_")[0]
    return family if family in ("oasis", "both") else "hinge_fm"


def discriminator_for(loss):
    family = loss.split("_")[0]
    return family if family in ("oasis", "both") else "patch"


@pytest.fixture
def smoke(tmp_path, make_folder, composed, tiny):
    """Trains tiny networks for two batches: `smoke("group=choice")`."""

    def fit(*chosen, palette=tiny[0], root=None):
        root = root or make_folder(tmp_path / "data", train=2, val=1)
        paths = (f"data_root={root}", f"out_dir={tmp_path / 'run'}")
        config = composed("train", "trainer=cpu", *filter(None, [palette]), *SMALL, *paths, *chosen)
        for network in (config.model.generator, config.model.discriminator):
            network.update(TINY_NETWORKS[network["name"]])
        for beside in EXTRA_DISCRIMINATORS:
            if config.model.discriminator.get(beside):
                config.model.discriminator[beside] = 4
        figures = train(config)
        assert all(math.isfinite(value) for value in figures.values())
        assert load_generator(tmp_path / "run" / "G_e001.pt").epoch == 1
        return figures

    return fit


@pytest.mark.parametrize(
    ("group", "choice"),
    # Two processes are a test of their own; a GPU is not everywhere.
    [
        (group, choice)
        for group in ("model", "jitter", "trainer")
        for choice in choices(group)
        if (group, choice) not in (("trainer", "ddp"), ("trainer", "gpu"))
    ],
)
def test_every_model_jitter_and_trainer_trains(group, choice, smoke):
    smoke(f"{group}={choice}")


@pytest.mark.parametrize("choice", choices("loss"))
def test_every_loss_trains(choice, smoke):
    smoke(f"loss={choice}", f"model/discriminator={discriminator_for(choice)}")


# Every generator and every discriminator once; `check_networks` takes every pair of them below.
@pytest.mark.parametrize(
    ("generator", "discriminator"),
    [
        ("unet", "patch"),
        ("unet", "projected"),
        ("spade", "both"),
        ("clade", "oasis"),
        ("oasis", "both_projected"),
    ],
)
def test_every_network_trains(generator, discriminator, smoke):
    networks = (f"model/generator={generator}", f"model/discriminator={discriminator}")
    smoke(*networks, f"loss={loss_for(discriminator)}")


@pytest.mark.filterwarnings("ignore:.*never occurs in the masks")
@pytest.mark.parametrize("choice", UNPUBLISHED)
def test_every_data_choice_trains(choice, smoke, tmp_path):
    if choice == "demo":
        smoke("data=demo", *WORLD, palette=None, root=tmp_path / "demo")
    else:
        smoke(f"data={choice}")


@pytest.mark.filterwarnings("ignore:.*never occurs in the masks")
@pytest.mark.parametrize("choice", [c for c in choices("experiment") if c != "new_ground"])
def test_every_experiment_of_a_generator_trains(choice, smoke, tmp_path):
    root = tmp_path / "demo"
    # Not auto: bfloat16 gradients of 3x3 weights on maps of 1x1, as here, can be NaN on a CPU with
    # two threads (torch 2.15), and a stopwatch would decide whether they are met.
    asked = ("precision=32-true", "init_from=null", "data=demo", *WORLD)
    smoke(f"experiment={choice}", *asked, palette=None, root=root)


def all_terms():
    return (
        "loss.perceptual.weight=1", "loss.diversity.weight=1", "loss.r1.weight=1",
        "loss.feature_matching.weight=1", "loss.augment.p=0.5",
    )  # fmt: skip


@pytest.mark.parametrize("discriminator", ["patch", "oasis", "projected"])
def test_all_terms_train_together(discriminator, smoke):
    loss = loss_for(discriminator)
    figures = smoke(f"model/discriminator={discriminator}", f"loss={loss}", *all_terms())
    terms = {"g/adversarial", "g/feature_matching", "g/perceptual", "g/diversity", "d/r1"}
    assert terms <= set(figures)
    assert ("d/labelmix" in figures) == (discriminator == "oasis")


def test_all_terms_train_in_mixed_precision(smoke):
    smoke("model=oasis_light", *all_terms(), "precision=bf16-mixed")


@pytest.mark.parametrize("bands", [1, 5])
def test_other_numbers_of_bands_train(bands, smoke, make_folder, tmp_path):
    root = make_folder(tmp_path / "bands", train=2, val=1, bands=bands)
    smoke("model=projected_light", *all_terms(), root=root)


def chosen_network(composed, kind, choice):
    network = getattr(composed("train", f"model/{kind}={choice}").model, kind)
    if "spectral_norm" in network:
        network["spectral_norm"] = False  # takes most of the time of building
    return network


@pytest.mark.parametrize("name", choices("model/discriminator"))
def test_every_generator_and_every_loss_that_can_train_it_is_taken(name, composed):
    discriminator = chosen_network(composed, "discriminator", name)
    loss = composed("train", f"loss={loss_for(name)}").loss
    for choice in choices("model/generator"):
        generator = chosen_network(composed, "generator", choice)
        model = defaults(ModelSettings, generator, discriminator)
        check_networks(model, loss, 6, 256)
    for choice in choices("loss"):
        loss = composed("train", f"loss={choice}").loss
        family = name.split("_")[0]
        if discriminator_for(choice) == {"projected": "patch"}.get(family, family):
            check_networks(model, loss, 6, 256)
            continue
        with pytest.raises(UserError, match=r"needs a discriminator that .*Use "):
            check_networks(model, loss, 6, 256)


@pytest.fixture
def smoke_segmenter(tmp_path, make_folder, composed, tiny):
    def fit(*settings):
        root = make_folder(tmp_path / "data", train=2, val=1)
        paths = (f"data_root={root}", f"out_dir={tmp_path / 'run'}")
        common = (tiny[0], *SMALL, "trainer=cpu", "select=last", "inner_share=0")
        train_segmenter(composed("train_segmenter", *settings, *common, *paths))
        assert (tmp_path / "run" / "segmenter.pt").is_file()

    return fit


@pytest.mark.parametrize("choice", choices("segmenter"))
def test_every_segmenter_trains(choice, smoke_segmenter):
    smoke_segmenter(f"segmenter={choice}")


@pytest.mark.parametrize("choice", choices("augment"))
def test_every_augmentation_of_a_segmenter_trains(
    choice, smoke_segmenter, tiny_segmenter, make_generated, tmp_path
):
    network = [setting for setting in tiny_segmenter if "segmenter" in setting]
    pairs = make_generated(tmp_path / "made", range(3))
    smoke_segmenter(*network, f"augment={choice}", f"synthetic={pairs}")
