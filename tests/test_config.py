import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from geoseg_gan.config_help import help_of, settings_of
from geoseg_gan.schemas import SCHEMAS
from geoseg_gan.sweeps import job_folder

from geoseg_gan import config as configuration
from geoseg_gan.config import plain
from geoseg_gan.models.registry import DISCRIMINATORS, GENERATORS
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.training.settings import TrainConfig
from geoseg_gan.utils.errors import UserError

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
CHOICES = sorted(
    (path.parent.relative_to(CONFIGS).as_posix(), path.stem) for path in CONFIGS.rglob("*/*.yaml")
)

PAIRED = ("oasis", "both")
"""Discriminators that tell classes, and losses that want it."""


def script(name, *arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_every_group_composes_into_a_configuration_that_builds(
    group, choice, composed
):
    from geoseg_gan.models.segmenters import check_segmenter
    from geoseg_gan.training.train import check_networks

    if group in ("segmenter", "augment"):
        config = composed("train_segmenter", f"{group}={choice}")
        check_segmenter(config.segmenter, config.image_size)
        return
    if group == "recipe":
        config = composed("trial", f"recipe={choice}")
        config.recipes[choice].check(choice, config.jitter)
        return
    # What tells classes and what is trained to tell them are only chosen together.
    partner = {"loss": "model/discriminator", "model/discriminator": "loss"}
    family = choice.split("_")[0]
    with_it = [f"{partner[group]}={family}"] if partner.get(group) and family in PAIRED else []
    config = composed("train", f"{group}={choice}", *with_it)
    classes = config.data.classes().num_classes
    if group.split("/")[0] in ("model", "loss", "experiment"):
        check_networks(config.model, config.loss, classes, config.image_size)
    config.loss.check()
    config.optimizer.check()


def test_the_defaults_are_the_documented_ones(composed):
    train = composed("train")
    assert (train.epochs, train.bs, train.lr, train.image_size) == (10, 8, 2e-4, 256)
    assert (train.data_root, train.out_dir) == ("data", "runs/label2img")
    assert (train.loss.adversarial, train.loss.feature_matching.weight) == ("hinge", 10.0)
    assert (train.loss.perceptual.weight, train.loss.augment.p, train.optimizer.ema) == (
        0,
        0,
        0.999,
    )
    assert [c.name for c in train.data.palette][:2] == ["Background", "Forest land"]
    generate = composed("generate", "gen_ckpt=G.pt")
    assert (generate.num_samples, generate.save_dir, generate.layout) == (
        1000,
        "synthetic",
        "pairs",
    )
    assert (generate.tau, generate.segmenter_ckpt, generate.sampling) == (0.65, None, "uniform")
    segmenter = composed("train_segmenter")
    assert (segmenter.out_dir, segmenter.synthetic, segmenter.synthetic_ratio) == (
        "runs/segmenter",
        None,
        0.25,
    )
    assert (segmenter.segmenter.arch, segmenter.select) == ("unet", "best")


def test_the_command_line_wins_over_a_data_choice_s_data_root(composed):
    assert composed("train", "data=demo").data_root == "data/demo"
    assert composed("train", "data=demo", "data_root=elsewhere").data_root == "elsewhere"


def test_a_model_brings_its_rates_and_its_loss(composed):
    for name in ("train", "trial", "benchmark"):
        config = composed(name, "model=spade")
        assert (config.lr, config.optimizer.betas) == (1e-4, [0.0, 0.999])
        assert config.loss == composed(name, "loss=spade").loss
    assert composed("train", "model=oasis").loss.adversarial == "classes"
    assert composed("train", "model=spade_light").lr == 2e-4


def test_the_command_line_wins_over_what_a_model_brings(composed):
    config = composed("train", "model=spade", "lr=3e-4", "optimizer.betas=[0.1,0.9]")
    assert (config.lr, config.optimizer.betas) == (3e-4, [0.1, 0.9])
    assert config.optimizer.d_lr_ratio == 4.0
    for order in (("model=spade", "loss=lsgan_fm"), ("loss=lsgan_fm", "model=spade")):
        config = composed("train", *order)
        assert config.loss == composed("train", "loss=lsgan_fm").loss
        assert config.lr == 1e-4
    config = composed("train", "model=spade", "loss.perceptual.weight=0")
    assert (config.loss.perceptual.weight, config.loss.feature_matching.weight) == (0, 10)


def test_the_command_line_wins_over_an_experiment_s_model(composed):
    assert plain(composed("train", "experiment=demo"))["model"]["generator"]["name"] == "unet"
    config = composed("train", "experiment=demo", "model=oasis_light")
    assert config.model.generator.modulation == "spade"
    assert (config.image_size, config.loss.adversarial) == (128, "classes")


@pytest.mark.parametrize("model", ["unet", "spade"])
def test_each_network_of_a_model_can_be_chosen(model, composed):
    whole = plain(composed("train", f"model={model}").model)
    changed = plain(composed("train", f"model={model}", "model/generator=clade_light").model)
    assert changed["generator"]["modulation"] == "clade" and changed["generator"]["head_width"]
    assert changed["discriminator"] == whole["discriminator"]
    changed = plain(composed("train", f"model={model}", "model/discriminator=patch_light").model)
    assert changed["discriminator"]["scales"] == 1 and changed["generator"] == whole["generator"]


def test_a_missing_value_is_named_with_its_meaning(composed):
    with pytest.raises(UserError, match=r"gen_ckpt is not set: give the generator"):
        composed("generate")


def test_configurations_become_plain_types(composed):
    def leaves(value):
        if isinstance(value, dict):
            return [leaf for inner in value.values() for leaf in leaves(inner)]
        if isinstance(value, list):
            return [leaf for inner in value for leaf in leaves(inner)]
        return [value]

    settings = plain(composed("train"))
    assert {type(leaf) for leaf in leaves(settings)} <= {int, float, str, bool, type(None)}
    assert settings == yaml.safe_load(yaml.safe_dump(settings))


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_shows_every_knob_in_a_line_of_its_own(name):
    text = help_of(name)
    knobs = [f for f in settings_of(SCHEMAS[name]).values() if "help" in f.metadata]
    assert knobs
    for knob in knobs:
        lines = [line for line in text.splitlines() if re.match(rf"  {knob.name}=", line)]
        assert len(lines) == 1
        assert knob.metadata["help"] in lines[0]


def test_the_scripts_print_their_help(tmp_path):
    shown = script("train", "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "keep_checkpoints=all" in shown.stdout
    assert re.search(r"  model: .*oasis, .*unet, unet_light", shown.stdout)
    assert re.search(r"  model/generator: clade, .*unet_light", shown.stdout)
    assert re.search(r"  loss: both, both_augmented, hinge_fm, lsgan_fm, ", shown.stdout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("epoch=3", "there is no setting 'epoch'. Did you mean 'epochs'?"),
        ("model.generator.widht=3", "there is no setting 'model.generator.widht'"),
        ("epochs=many", "epochs"),
        ("model=unit", "unet"),
        ("model/generator=spad", "spade"),
        ("loss=oasis", "Use model/discriminator=oasis, or loss=hinge_fm."),
        ("model/discriminator=oasis", "Use model/discriminator=patch, or loss=oasis."),
        ("loss.adversarial=hing", "Did you mean 'hinge'?"),
        ("loss.name=hinge_fm", "there is no setting 'loss.name'"),
        ("loss.r1.every=0", "loss.r1.every=0: use 1 or more"),
        ("loss.augment.adaptive=true", "set inner_share=0.15 or so"),
        ("bs=0", "bs=0 must be positive"),
        ("image_size=100", "image_size=128"),
        ("data_root=nowhere", "nowhere is not a folder"),
        ("precision=8", "precision=8 is not one of"),
        ("keep_checkpoints=some", "keep_checkpoints=some"),
        ("crops=balance", "crops=balance is not one of uniform, balanced, rare. Did you mean"),
        ("data.unknown=nearst", "Did you mean 'nearest'?"),
        ("jitter.flip.p=2", "jitter.flip.p=2"),
        ("hydra/launcher=submitit_moon", "pip install 'geoseg-gan[sweep]'"),
        ("data.group_regex=part_[78]", "Quote values"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_1(
    argument, message, tmp_path, monkeypatch, capsys
):
    from geoseg_gan.training.train import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", argument])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not list(tmp_path.iterdir())


def test_a_new_option_without_its_plus_is_told_so(tmp_path, monkeypatch, capsys):
    from geoseg_gan.training.train_segmenter import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["x.py", "segmenter.options.encoder_depth=4"])
    with pytest.raises(SystemExit):
        main()
    assert "takes a plus: +segmenter.options.encoder_depth=" in capsys.readouterr().err


def test_job_folders_are_named_by_what_differs_between_jobs(monkeypatch):
    arguments = ["-m", "out_dir=/a/b", "lr=0.001,0.01", "model=unet"]
    keys = configuration._constant_keys(arguments)
    assert keys == ["out_dir", "model"]
    monkeypatch.setenv("GEOSEG_GAN_CONSTANT", ",".join(keys))
    assert job_folder(["out_dir=/a/b", "lr=0.001", "model=unet"]) == "lr=0.001"
    assert job_folder(["model=unet"]) == "model=unet"
    assert "/" not in job_folder(["data_root=/a/b c"])
    long = [job_folder([f"data_root={'x' * 300}{i}"]) for i in range(2)]
    assert long[0] != long[1]
    assert max(map(len, long)) <= 120


@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_schemas_of_networks_follow_their_constructors(kind, composed):
    known = {"generator": GENERATORS, "discriminator": DISCRIMINATORS}[kind]
    for choice in sorted(c for group, c in CHOICES if group == f"model/{kind}"):
        settings = plain(composed("train", f"model/{kind}={choice}", f"model.{kind}.width=8"))
        settings = settings["model"][kind]
        arguments = inspect.signature(known[settings.pop("name")]).parameters.values()
        keywords = [p.name for p in arguments if p.kind is p.KEYWORD_ONLY]
        assert list(settings) == keywords and settings["width"] == 8


def test_schemas_know_the_commands():
    assert SCHEMAS["train"] is TrainConfig
    assert SCHEMAS["generate"] is GenerateConfig
    assert set(SCHEMAS) == {path.stem for path in (ROOT / "scripts").glob("*.py")}
