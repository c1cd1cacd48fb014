import dataclasses
import errno
import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from defaults import SCHEMAS
from hydra.core.override_parser.overrides_parser import OverridesParser

from geoseg_gan.config import FileConfigSource, as_override, plain, texts_as_typed
from geoseg_gan.data.settings import AugmentSettings, DataSettings
from geoseg_gan.training.settings import TrainConfig, train_command, train_segmenter_command
from geoseg_gan.utils.errors import UserError, install
from geoseg_gan.utils.messages import Texts, help_text, settings_of
from geoseg_gan.utils.signals import SIGNALS, Stopped

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
CHOICES = sorted(
    (path.parent.relative_to(CONFIGS).as_posix(), path.stem) for path in CONFIGS.rglob("*/*.yaml")
)
ROOMS = (
    *("data", "losses", "models", "synthesis", "training", "evaluation", "export", "trials"),
    "studio",
)

PAIRED = ("oasis", "both")
"""Discriminators that tell classes, and losses that want it."""


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
    if group == "recipe/refine":  # which the recipes that refine choose by the model
        assert composed("trial", "recipe=refined", f"model={choice}").recipes
        return
    if group == "recipe":
        assert choice in composed("trial", f"recipe={choice}").recipes
        return
    # A discriminator of classes and a loss on classes are only chosen together.
    partner = {"loss": "model/discriminator", "model/discriminator": "loss"}
    family = choice.split("_")[0]
    with_it = [f"{partner[group]}={family}"] if partner.get(group) and family in PAIRED else []
    if "scripts/trial.py" in (CONFIGS / group / f"{choice}.yaml").read_text():
        assert composed("trial", f"experiment={choice}").recipes
        return
    config = composed("train", f"{group}={choice}", *with_it)
    if group.split("/")[0] in ("model", "loss", "experiment"):
        classes = config.data.classes().num_classes
        check_networks(config.model, config.loss, classes, config.image_size)


def test_the_defaults_are_the_documented_ones(composed):
    train = composed("train")
    assert (train.epochs, train.bs, train.lr, train.image_size) == (10, 8, 2e-4, 256)
    assert (train.data_root, train.out_dir) == ("data", "runs/label2img")
    assert (train.loss.adversarial, train.loss.feature_matching.weight) == ("hinge", 10.0)
    assert (train.loss.perceptual.weight, train.loss.augment.p) == (0, 0)
    assert [c.name for c in train.data.palette][:2] == ["Background", "Forest land"]
    generate = composed("generate", "gen_ckpt=G.pt")
    places = (generate.num_samples, generate.save_dir, generate.layout)
    assert places == (1000, "synthetic", "pairs")
    assert (generate.tau, generate.segmenter_ckpt, generate.sampling) == (0.65, None, "uniform")
    segmenter = composed("train_segmenter")
    assert (segmenter.out_dir, segmenter.segmenter.arch) == ("runs/segmenter", "unet")
    assert (segmenter.synthetic, segmenter.synthetic_ratio) == (None, 0.25)


def test_the_command_line_wins_over_a_data_choice_s_data_root(composed):
    assert composed("train", "data=demo").data_root == "data/demo"
    assert composed("train", "data=demo", "data_root=elsewhere").data_root == "elsewhere"


def test_a_model_brings_its_rates_and_its_loss(composed):
    config = composed("train", "model=spade")
    assert (config.lr, config.optimizer.betas) == (1e-4, [0.0, 0.999])
    assert config.loss == composed("train", "loss=spade").loss
    assert composed("train", "model=oasis").loss.adversarial == "classes"
    assert composed("train", "model=spade_light").lr == 2e-4
    trial = composed("trial", "model=spade").train
    assert (trial.lr, trial.optimizer, trial.loss) == (config.lr, config.optimizer, config.loss)


TYPED = [
    *("2024_06_01", "007", "0x10", "1e5", "-3", "true", "nan", "a=b", "a [1] b.c", "köln", "a#b"),
    *("a(b)", "part_[78]$", "ko\u0308ln", "a, b", "it's", "null"),
]


@pytest.mark.parametrize("text", TYPED)
def test_a_setting_that_is_a_text_is_what_was_typed(text):
    given = text if "," not in text and text != "null" else f"'{text}'"
    for override in (f"out_dir={given}", as_override("out_dir", text, TrainConfig)):
        [typed] = texts_as_typed(TrainConfig, [override])
        assert OverridesParser.create().parse_override(typed).value() == text


def test_a_part_s_setting_that_is_a_text_is_what_was_typed(composed):
    config = composed("trial", "data_root=2024_06", "data.split_file=1e5")
    assert (config.train.data_root, config.train.data.split_file) == ("2024_06", "1e5")


def of_all_commands():
    """Key and type of every setting of every command."""
    return {(n, key): kind for n, schema in SCHEMAS.items() for key, kind in settings_of(schema)}


PATHS = re.compile(
    r"(.*_)?(root|dir|path|file|folder|ckpt)|init_from|source|unlabelled|synthetic|features|masks|merge"
)
NOT_TEXTS = {"tau", "confidence", "seeds", "class_weights", "index_map"}  # of several types


def test_paths_are_texts_and_what_is_of_several_types_is_known():
    kinds = of_all_commands()
    paths = {kinds[at] for at in kinds if PATHS.fullmatch(at[1].rpartition(".")[2])}
    assert paths <= {str, str | None, list[str], Texts}
    loose = {key.rpartition(".")[2] for (_, key), kind in kinds.items() if kind is Any}
    assert loose == NOT_TEXTS


@pytest.mark.parametrize("command", SCHEMAS)
def test_every_setting_that_is_a_text_is_what_was_typed(command):
    parse = OverridesParser.create().parse_override
    for (name, key), kind in of_all_commands().items():
        if name != command or kind not in (str, str | None, Texts):
            continue
        for text in ("2024_06", "1e5", "true", "a [1].b"):
            [typed] = texts_as_typed(SCHEMAS[command], [f"{key}={text}"])
            assert parse(typed).value() == text, typed
        assert texts_as_typed(SCHEMAS[command], [f"{key}=null"]) == [f"{key}=null"]


def test_one_folder_or_several_of_synthetic_pairs_are_what_was_typed(composed):
    assert composed("train_segmenter", "synthetic=2024_06").synthetic == "2024_06"
    several = composed("train_segmenter", "synthetic=[2024_06,1e5,'a b']").synthetic
    assert several == ["2024_06", "1e5", "a b"]
    assert composed("train_segmenter", "synthetic=null").synthetic is None


def test_lists_sweeps_and_null_of_settings_that_are_texts(composed):
    groups = composed("tile", "source=a", "val_groups=[2020_01,'a b',007,true]").val_groups
    assert groups == ["2020_01", "a b", "007", "true"]
    assert composed("train", "init_from=null").init_from is None
    sweep = texts_as_typed(TrainConfig, ["data_root=2023_10,2023_11", "epochs=1_0"])
    assert sweep == ["data_root='2023_10','2023_11'", "epochs=1_0"]


def test_a_command_takes_a_folder_that_looks_like_a_number(capsys, run_command):
    assert run_command(train_command, "data_root=2023_10") == 1
    assert "data_root=2023_10 is not a folder" in capsys.readouterr().err


def test_the_command_line_wins_over_what_a_model_brings(composed):
    config = composed("train", "model=spade", "lr=3e-4", "optimizer.betas=[0.1,0.9]")
    assert (config.lr, config.optimizer.betas) == (3e-4, [0.1, 0.9])
    assert config.optimizer.d_lr_ratio == 4.0
    for order in (("model=spade", "loss=lsgan_fm"), ("loss=lsgan_fm", "model=spade")):
        config = composed("train", *order)
        assert config.loss == composed("train", "loss=lsgan_fm").loss
        assert composed("trial", *order).train.loss == config.loss
        assert config.lr == 1e-4
    config = composed("train", "model=spade", "loss.perceptual.weight=0")
    assert (config.loss.perceptual.weight, config.loss.feature_matching.weight) == (0, 10)


def test_the_command_line_wins_over_an_experiment_s_model(composed):
    assert composed("train", "experiment=demo").model.generator["name"] == "unet"
    config = composed("train", "experiment=demo", "model=oasis_light")
    assert config.model.generator["modulation"] == "spade"
    assert (config.image_size, config.loss.adversarial) == (128, "classes")


@pytest.mark.parametrize("model", ["unet", "spade"])
def test_each_network_of_a_model_can_be_chosen(model, composed):
    whole = composed("train", f"model={model}").model
    changed = composed("train", f"model={model}", "model/generator=clade_light").model
    assert changed.generator["modulation"] == "clade" and changed.generator["head_width"]
    assert changed.discriminator == whole.discriminator
    changed = composed("train", f"model={model}", "model/discriminator=patch_light").model
    assert changed.discriminator["scales"] == 1 and changed.generator == whole.generator


def test_a_search_goes_where_its_monitor_is_better():
    from hydra import compose, initialize_config_module

    for monitor, direction in (("kid", "minimize"), ("agreement", "maximize")):
        with initialize_config_module("geoseg_gan.configs", version_base="1.3"):
            overrides = ["experiment=sweep_hinge", f"monitor={monitor}"]
            config = compose("train", overrides, return_hydra_config=True)
        assert config.hydra.sweeper.direction == direction


def settings_classes():
    names = [*(f"{room}.settings" for room in ROOMS), "utils.device"]
    modules = [importlib.import_module(f"geoseg_gan.{name}") for name in names]
    return [
        value
        for module in modules
        for value in vars(module).values()
        if dataclasses.is_dataclass(value)
        and value.__module__ == module.__name__
        and value.__name__ != "RecipeSettings"  # a recipe lists what it changes
    ]


@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__name__)
def test_settings_have_no_default_but_that_of_the_yaml_files(kind):
    for entry in dataclasses.fields(kind):
        assert entry.default is entry.default_factory is dataclasses.MISSING, entry.name


def own_settings():
    """YAML files that inherit nothing, which list every knob."""
    for path in sorted(CONFIGS.rglob("*.yaml")):
        room = path.relative_to(CONFIGS).parts[0]
        if room not in ("recipe", "command.yaml") and (
            path.parent == CONFIGS or not re.search("^defaults:", path.read_text(), re.MULTILINE)
        ):
            yield path


@pytest.mark.parametrize("path", list(own_settings()), ids=lambda path: path.stem)
def test_every_knob_has_a_comment_in_yaml(path):
    lines = path.read_text().splitlines()
    if path.stem == "trial":  # whose parts change knobs that other files list
        lines = [line for line in lines if not line.startswith(" ")]
    bare = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if re.match(r"\s*\w+: [^\s$]", line)
        and "#" not in line
        and not before.strip().startswith("#")
    ]
    assert bare == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_shows_every_knob_part_and_group(name):
    text = help_text(name)
    for key, hint in typing.get_type_hints(SCHEMAS[name]).items():
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        knob = not any(map(dataclasses.is_dataclass, kinds))
        (line,) = re.findall(rf"^  {key}{'=' if knob else ': '}\S.*$", text, re.MULTILINE)
        assert not knob or len(line.split()) > 2
    assert max(map(len, text.splitlines())) < 300


def test_help_tells_defaults_meanings_and_choices():
    text = help_text("train")
    assert re.search(r"^  epochs=10 +how often", text, re.MULTILINE)
    assert re.search(r"^  speed: channels_last, fused", text, re.MULTILINE)
    assert re.search(r"^  model: .*oasis, .*unet, unet_light", text, re.MULTILINE)
    assert re.search(r"^  model/generator: clade, .*unet_light", text, re.MULTILINE)
    assert re.search(r"^  experiment: .*demo", text, re.MULTILINE) and "new_ground" not in text
    assert "new_ground" in help_text("trial") and "refine, sweep" not in help_text("trial")
    place = re.search(r"^Keys stand with .* in (\S+)/GROUP/CHOICE.yaml\.$", text, re.MULTILINE)[1]
    assert (Path(place) / "data" / "landcover.yaml").is_file()


def test_help_names_the_keys_of_groups_within_a_group():
    (line,) = re.findall(r"^    keys of augment: (.*)$", help_text("train_segmenter"), re.MULTILINE)
    for entry in dataclasses.fields(AugmentSettings):
        inner = typing.get_type_hints(AugmentSettings)[entry.name]
        keys = ", ".join(field.name for field in dataclasses.fields(inner))
        assert f"{entry.name} ({keys})" in line


@pytest.mark.parametrize("name", ["train", "tile", "check_data", "trial"])
def test_help_names_every_key_of_the_data(name):
    (line,) = re.findall(r"^    keys of data: (.*)$", help_text(name), re.MULTILINE)
    assert line.split(", ") == [entry.name for entry in dataclasses.fields(DataSettings)]


def test_help_loads_no_torch_and_leaves_nothing(tmp_path):
    heavy = ("torch", "lightning", "cv2", "rasterio", "scipy", "matplotlib", "optuna")
    code = (
        "import runpy, sys\n"
        f"for path in {[str(ROOT / 'scripts' / f'{name}.py') for name in SCHEMAS]}:\n"
        "    sys.argv = [path, '--help']\n"
        "    runpy.run_path(path, run_name='__main__')\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith("\n[]\n")
    assert all(f"scripts/{name}.py" in done.stdout for name in SCHEMAS)
    assert not list(tmp_path.iterdir())


def test_help_into_a_closed_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, ROOT / "scripts" / "tile.py", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_cfg_job_shows_every_setting(composed, capsys, run_command):
    assert run_command(train_command, "--cfg", "job") == 0
    assert yaml.safe_load(capsys.readouterr().out) == plain(composed("train"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("epoch=3", "there is no setting 'epoch'. Did you mean 'epochs'?"),
        ("+extra=1", "there is no setting 'extra'. See --help"),
        ("+loss.r1.extra=1", "there is no setting 'loss.r1.extra'. See --help"),
        ("optimizer.emma=0", "there is no setting 'optimizer.emma'. Did you mean 'optimizer.ema'"),
        ("ema=0", "there is no setting 'ema'. Did you mean 'optimizer.ema'"),
        ("loss.name=hinge_fm", "there is no setting 'loss.name'"),
        ("model.generator.widht=3", "there is no setting 'model.generator.widht'"),
        ("epochs=many", "epochs=many: use a whole number."),
        ("epoch_steps=x", "epoch_steps=x: use a whole number or null."),
        ("resume=maybe", "resume=maybe: use true or false."),
        ("optimizer.betas=[a,b]", "optimizer.betas=[a,b]: use a list, each item a number."),
        ("optimizer=3", "optimizer=3: use one of adam."),
        ("experiment=new_ground", "experiment=new_ground is an experiment of scripts/trial.py."),
        ("onnx=3", "onnx=3: use {key: value, ...}."),
        ("lr=1,2", "lr=1,2' 1. To use it as a list, use key=[value1,value2]"),
        ("epochs", "epochs cannot be read: use key=value"),
        ("data.group_regex='part_[78]", "\"key='a[b]'\""),
        ("data.demo.seed=3", "choose the part first, as data=demo does"),
        ("model=unit", "model=unit is not one of clade, clade_light, "),
        ("data.unknown=nearst", "Did you mean 'nearest'?"),
        ("jitter.flip.p=2", "jitter.flip.p=2"),
        ("model.generator=unet", "use model/generator=... with one of clade, "),
        ("hydra/launcher=submitit_moon", install("sweep")),
        ("lr=inf", "lr=inf: use a finite number"),
        ("loss.feature_matching.weight=nan", "loss.feature_matching.weight=nan: use a finite"),
        ("optimizer.betas=[0.5,nan]", "optimizer.betas=nan: use a finite number"),
        ("+model.generator.more=[inf]", "model.generator.more=inf: use a finite number"),
        ("lr='1e999'", "lr=inf: use a finite number"),
        ("seed=4294967296", "seed=4294967296: use 0 or more, up to 4294967295"),
        ("bs=1000000", "bs=1000000: use 1 or more, up to 65536"),
        ("out_dir=", "out_dir is empty"),
        ("out_dir=s3://a/b", "out_dir=s3://a/b: only data_root, of a stream, can be an address"),
        ("data_root=s3://a/b", "data_root=s3://a/b: only data_root, of a stream, can be"),
        ("out_dir='a\nb'", "characters that cannot be shown"),
        ("out_dir='~/runs'", "only a shell knows ~"),
        ("out_dir='${nope}'", "'nope' not found"),
        ("out_dir='${oc.env:NOPE_NOT_SET}'", "'NOPE_NOT_SET' not found"),
        ("data.palette=${data_root}", "data.palette"),
        ("data=null", "data=null: use one of chesapeake, "),
        ("loss=3", "loss=3: use one of both, "),
        ("trainer=[1,1]", "trainer=[1,1]: use one of auto, cpu, ddp, gpu"),
        ("model=null", "model=null: use one of clade, "),
        ("model.generator=null", "use model/generator=... with one of clade, "),
    ],
)
def test_a_mistake_is_told_in_the_words_of_the_command_line(argument, message, composed):
    with pytest.raises(UserError) as caught:
        composed("train", argument)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and "object_type" not in str(caught.value)


def test_a_group_of_other_commands_is_no_setting(composed):
    with pytest.raises(UserError, match=r"'segmenter'\. Did you mean 'segmenter_ckpt'\?"):
        composed("generate", "segmenter=segmenter.pt")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("epoch=3", "Did you mean 'epochs'?"),
        ("data_root=nowhere", "nowhere is not a folder"),
        ("loss=oasis", "Use model/discriminator=oasis, or loss=hinge_fm."),
        ("model/discriminator=oasis", "Use model/discriminator=patch, or loss=oasis."),
        ("loss.adversarial=hing", "Did you mean 'hinge'?"),
        ("image_size=100", "image_size=64"),
        ("bs=0", "bs=0: use 1 or more"),
        ("precision=8", "precision=8 is not one of"),
        ("keep_checkpoints=some", "keep_checkpoints=some"),
        ("crops=balance", "crops=balance is not one of uniform, balanced, rare. Did you mean"),
        ("+model.generator.widht=3", "model.generator.widht=3: unet has no such setting. It has"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(argument, message, tmp_path, capsys, run_command):
    assert run_command(train_command, argument) == 1
    shown = capsys.readouterr()
    assert re.fullmatch("error: [^\n]+\n", shown.err)
    assert message in shown.err and "object_type" not in shown.err
    assert not list(tmp_path.iterdir())


def test_a_missing_value_is_named_with_its_meaning(composed):
    with pytest.raises(
        UserError, match=r"ckpt is not set: give a checkpoint .G_e###.pt or .*ckpt=\.+"
    ):
        composed("export")


def test_options_of_a_segmenter_are_free_with_a_plus(composed, capsys, run_command):
    option = "segmenter.options.encoder_depth=4"
    assert composed("train_segmenter", f"+{option}").segmenter.options == {"encoder_depth": 4}
    assert run_command(train_segmenter_command, option) == 1
    assert "takes a plus: +segmenter.options.encoder_depth=" in capsys.readouterr().err


def _with_note(error, note):
    error.add_note(note)
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("lr is wrong."), 1, "error: lr is wrong.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.pt"), 1, "No space .*: a.pt. Free"),
        (
            OSError(errno.EROFS, "Read-only file system", "a.pt"),
            1,
            "Read-only .*: a.pt. Choose",
        ),
        (MemoryError(), 1, "error: out of memory: use a smaller bs"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: out of memory"),
        (Stopped(signal.SIGINT), 130, "error: interrupted.\n"),
        (Stopped(signal.SIGTERM), 143, "error: SIGTERM received.\n"),
        (_with_note(Stopped(signal.SIGINT), "Gone."), 130, r"error: interrupted\. Gone\.\n"),
        (ZeroDivisionError("ours"), 1, "Traceback.*error: ZeroDivisionError: ours\n"),
    ],
)
def test_what_stops_a_command_is_told(error, code, line, monkeypatch, capsys, recwarn, run_command):
    def fail(config):
        raise error

    monkeypatch.setattr("geoseg_gan.training.train.train", fail)
    assert run_command(train_command) == code
    shown = capsys.readouterr().err
    assert re.search(line, shown, re.DOTALL)
    assert ("Traceback" in shown) is isinstance(error, ZeroDivisionError)


def test_matplotlib_does_not_tell_of_its_cache_of_fonts(monkeypatch, run_command):
    fonts = logging.getLogger("matplotlib.font_manager")
    monkeypatch.setattr(logging.getLogger("matplotlib"), "level", logging.WARNING)
    monkeypatch.setattr("geoseg_gan.training.train.train", lambda config: None)
    assert run_command(train_command) == 0 and not fonts.isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_in_one_line(number, monkeypatch, capsys, run_command):
    monkeypatch.setattr("geoseg_gan.training.train.train", lambda _: signal.raise_signal(number))
    assert run_command(train_command) == 128 + number
    assert capsys.readouterr().err.startswith("error: ")
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_every_command_has_a_script_an_entry_point_and_a_yaml_file():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points = {name.removeprefix("geoseg-").replace("-", "_") for name in project["scripts"]}
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    files = {path.stem for path in CONFIGS.glob("*.yaml")} - {"command"}
    assert points == scripts == files == set(SCHEMAS)
    for name, target in project["scripts"].items():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), name


OF_STRANGERS = {
    "experiment/callback": "# @package _global_\nhydra: {callbacks: {a: {_target_: os.abort}}}\n",
    "experiment/header": "\n# @package hydra.callbacks\na: 1\n",
    "experiment/escaped": 'data: {"\\u005ftarget_": os.abort}\n',
    "experiment/nested": "data: {palette: [{a: {_target_: os.abort}}]}\n",
    "experiment/alias": "a: &a {callbacks: {}}\nhydra: *a\n",
    "experiment/merged": "a: &a {hydra: 1}\n<<: *a\n",
    "experiment/override": "defaults:\n  - override /hydra/sweeper: optuna\n",
    "experiment/package": "defaults:\n  - /model@hydra.callbacks: unet\n",
    "experiment/built": "defaults:\n  - /hy${model}/launcher/basic\n",
    "experiment/search": "hydra: {searchpath: ['file:///tmp']}\n",
    "experiment/secret": "out_dir: a${ oc.env:HOME}\n",
    "experiment/made": "out_dir: ${oc.${crops}:HOME}\n",
    "experiment/literal": "out_dir: '\\${oc.decode:x}'\n",
    "hydra/launcher/mine": "a: 1\n",
}


@pytest.mark.parametrize("name", OF_STRANGERS)
def test_config_files_from_elsewhere_cannot_run_code_or_read_secrets(name, tmp_path):
    path = tmp_path / f"{name}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(OF_STRANGERS[name])
    with pytest.raises(UserError, match=rf"{name}\.yaml: .* neither hydra nor _target_"):
        FileConfigSource("command-line", str(tmp_path)).load_config(name)


@pytest.mark.parametrize(
    "option", ["--config-dir=own", "--config-d=own", "hydra.searchpath=[own]", "--config-path=own"]
)
def test_every_way_to_name_a_folder_of_config_files_is_guarded(
    option, tmp_path, capsys, run_command
):
    path = tmp_path / "own" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(OF_STRANGERS["experiment/callback"])
    if option.startswith("--config-path"):
        option = f"--config-path={path.parent.parent}"
        (path.parent.parent / "train.yaml").write_text("defaults:\n  - experiment: mine\n")
    assert run_command(train_command, option, "experiment=mine") == 1
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: \S+mine.yaml: .* neither hydra nor _target_.*\n", shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--foo"], "unrecognized arguments: --foo"),
        (["-x", "epochs=1"], "unrecognized arguments: -x"),
        (["--epochs", "3"], "Write epochs=3; see --help."),
        (["lr=1", "--data.unknown=ignore"], "Write data.unknown=ignore; see --help."),
        (["lr=1", "--epochs", "-m"], "Write epochs=...; see --help."),
        (["epochs=1", "-m", "lr=1"], "Options stand before all settings or behind them"),
        (["--cfg", "nothing"], "invalid choice: 'nothing'"),
        (["--config-dir", "nowhere"], "nowhere' not found"),
        (["--experimental-rerun", "a.pickle"], "reads a pickle"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_1(arguments, message, capsys, run_command):
    assert run_command(train_command, *arguments) == 1
    shown = capsys.readouterr().err
    assert re.fullmatch("error: [^\n]+\n", shown) and message in shown


def test_an_experiment_from_elsewhere_is_used(tmp_path, capsys, run_command):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    path = tmp_path / "own" / "experiment" / "mine.yaml"
    arguments = ["--config-dir", "own", "experiment=mine", "--cfg", "job"]
    for epochs, code in ((7, 0), ("many", 1)):
        path.write_text(f"# @package _global_\nepochs: {epochs}\n")
        assert run_command(train_command, *arguments) == code
    shown = capsys.readouterr()
    assert "epochs: 7" in shown.out and "experiment/mine.yaml: Value 'many'" in shown.err
