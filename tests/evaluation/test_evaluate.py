import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from geoseg_gan.data.images import read_image, write_image
from geoseg_gan.data.synthetic import GENERATION
from geoseg_gan.evaluation import evaluate as command_module
from geoseg_gan.evaluation.evaluate import evaluate
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import LOCK, held

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"
PICTURES = ("spectrum", "repetition", "memorisation", "samples", "closest")


@pytest.fixture
def data(make_folder, tmp_path):
    return make_folder(tmp_path / "data", train=6, val=5)


@pytest.fixture
def run(tmp_path, composed):
    """Evaluates: `run("name", "gen_ckpt=...")` gives the folder and the main figures."""

    def call(name, *settings):
        folder = tmp_path / name
        config = composed("evaluate", f"out_dir={folder}", "trainer=cpu", "variants=2", *settings)
        return folder, evaluate(config)

    return call


def stored(folder):
    return json.loads((folder / "evaluation.json").read_text())


@pytest.mark.slow
def test_a_generator_is_measured_beside_real_images(run, data, generator, segmenter, capsys):
    folder, main = run("out", f"gen_ckpt={generator(data)}", f"segmenter_ckpt={segmenter()}")
    content = stored(folder)
    figures = content["figures"]
    assert figures["images"] == {"generated": 20, "validation": 20, "training": 24}
    rows = figures["fidelity"]
    assert list(rows)[:3] == ["generated", "real halves", "training windows"] and len(rows) == 11
    # What an untrained network generates is nothing like these images; other tiles are.
    assert rows["generated"]["kid"] > 10 * abs(rows["training windows"]["kid"])
    assert set(figures["coverage"]["generated"]) == {"precision", "recall"}
    for side in ("generated", "real"):
        assert set(figures["agreement"][side]) == {"miou", "pixel_accuracy", "classes"}
        assert list(figures["agreement"][side]["classes"])[1] == "Forest land"
    assert figures["diversity"]["generated"]["layers"] > 0 < figures["diversity"]["real"]["layers"]
    assert set(figures["spectrum"]["gap"]) == {"low", "middle", "high", "checkerboard"}
    assert len(figures["memorisation"]["closest"]) == 5
    assert len(content["checkpoint"]["sha256"]) == 64
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.width == 6 * 32 + 5 * 2  # mask, real and generated image, twice
    assert main["kid"] == rows["generated"]["kid"] and {"agreement", "diversity"} <= set(main)
    for name in PICTURES:
        assert (folder / f"{name}.png").is_file(), name
    text = (folder / "evaluation.md").read_text()
    assert all(f"({name}.png)" in text for name in PICTURES) and "known damage" in text
    assert "Warning: FID is biased upwards with so few images (20; 2048 are needed)" in text
    for key in ("KID x 1000", "agreement, mIoU %", "diversity, layers", "checkerboard", "Forest"):
        assert key in text
    shown = capsys.readouterr().out
    assert shown.startswith("Evaluating ") and "warning: FID is biased" in shown


def test_tiles_that_training_held_out_can_take_the_place_of_validation(
    run, make_folder, tiny_config, generator, tmp_path, monkeypatch, capsys
):
    data = make_folder(tmp_path / "data", train=10, val=0)
    monkeypatch.setitem(tiny_config, "inner_share", 0.4)
    folder, _ = run("out", f"gen_ckpt={generator(data)}", "split=held_out", "controls=false")
    figures = stored(folder)["figures"]
    assert figures["images"] == {"generated": 16, "held-out": 16, "training": 24}
    # Two halves of the same group: what was held out is among what was fitted in neither figure.
    assert figures["memorisation"]["held_out"] and min(figures["memorisation"]["held_out"]) > 0
    text = (folder / "evaluation.md").read_text()
    assert "against 16 real held-out windows" in text and "validation" not in text
    assert "on 4 held-out tiles of" in capsys.readouterr().out


def test_controls_and_segmenter_are_optional_and_no_evaluation_is_overwritten(
    run, data, generator, capsys
):
    settings = f"gen_ckpt={generator(data)}", "controls=false", "num_samples=16"
    folder, figures = run("out", *settings)
    rows = stored(folder)["figures"]["fidelity"]
    assert list(rows) == ["generated", "real halves", "training windows"]
    text = (folder / "evaluation.md").read_text()
    assert "known damage" not in text and "Not measured: no segmenter was given" in text
    assert "Without segmenter_ckpt there will be no figure" in capsys.readouterr().out
    before = (folder / "evaluation.json").read_bytes()
    assert run("out", *settings)[1] == pytest.approx(figures, nan_ok=True)
    assert "made with these settings" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds another evaluation\. Choose another out_dir"):
        run("out", *settings, "seed=1")
    tile = next((data / "val/images").iterdir())
    Image.new("RGB", (64, 64)).save(tile)
    with pytest.raises(UserError, match=r"an evaluation of other data: in val, its images"):
        run("out", *settings)
    assert (folder / "evaluation.json").read_bytes() == before


@pytest.mark.parametrize("key", ["fidelity", "coverage", "spectrum", "texture", "diversity"])
def test_figures_of_an_evaluation_that_lacks_some_are_not_believed(key, run, data, tmp_path):
    figures = {
        "fidelity": {"generated": {"kid": 0.1, "fid": None}},
        "coverage": {"generated": {"recall": 0.5}},
        "spectrum": {"gap": {"checkerboard": 0.1}},
        "texture": {"generated": None},
        "agreement": None,
        "diversity": {"generated": {}},
    }
    del figures[key]
    (tmp_path / "out").mkdir()
    rest = {"settings": {}, "checkpoint": None, "segmenter": None, "data": {}}
    (tmp_path / "out/evaluation.json").write_text(json.dumps(rest | {"figures": figures}))
    with pytest.raises(UserError, match=rf"figures.* {key}|{key}.*Choose another out_dir"):
        run("out", "gen_ckpt=G_e001.pt")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures(run, data, generator):
    settings = (f"gen_ckpt={generator(data)}", "num_samples=16")
    first, second = (stored(run(name, *settings)[0]) for name in ("a", "b"))
    assert first["figures"] == second["figures"]
    other = stored(run("c", *settings, "seed=1", "controls=false")[0])
    for row in ("generated", "real halves"):
        assert other["figures"]["fidelity"][row] != first["figures"]["fidelity"][row]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(run, data, generator, segmenter, monkeypatch):
    monkeypatch.setattr(command_module, "write_pictures", lambda *_, **__: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the process that is started: the last digits depend on it
    settings = (f"gen_ckpt={generator(data)}", f"segmenter_ckpt={segmenter()}", "bs=8")
    (alone, main), (together, same) = (run(f"of_{n}", *settings, f"devices={n}") for n in (1, 2))
    torch.set_num_threads(threads)
    assert same == main
    assert stored(together)["figures"] == stored(alone)["figures"]


@pytest.fixture
def paired(make_generated, tmp_path):
    """Writes a generated folder of a data folder: `paired(root, count)`."""

    def call(root, count, **settings):
        pairs = make_generated(tmp_path / "pairs", range(count), **settings)
        facts = json.loads((pairs / GENERATION).read_text())
        facts["config"]["data_root"] = str(root)
        (pairs / GENERATION).write_text(json.dumps(facts))
        return pairs

    return call


@pytest.mark.slow
def test_a_folder_of_pairs_is_measured_by_its_own_masks(run, data, paired, segmenter):
    pairs, path = paired(data, 18), segmenter()
    facts = json.loads((pairs / GENERATION).read_text())
    facts["segmenter"] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (pairs / GENERATION).write_text(json.dumps(facts))
    settings = f"folder={pairs}", "controls=false"
    folder, main = run("out", *settings, f"segmenter_ckpt={path}")
    figures = stored(folder)["figures"]
    assert figures["images"]["generated"] == 18
    assert figures["diversity"] is None and "diversity" not in main
    # All masks are alike: half class 1, half class 2, and no third.
    assert figures["agreement"]["generated"]["classes"]["Forest land"] is not None
    text = (folder / "evaluation.md").read_text()
    assert "it needs a generator (gen_ckpt), not a folder" in text
    # The segmenter that filtered the folder flatters it; another one does not.
    assert "Warning: Agreement is flattered" in text
    folder, _ = run("other", *settings, f"segmenter_ckpt={segmenter(held_out=(0.1,))}")
    assert "flattered" not in (folder / "evaluation.md").read_text()


def test_copies_of_training_images_are_found(run, make_folder, paired, tmp_path):
    data = make_folder(tmp_path / "data", train=16, val=16)
    pairs = paired(data, 16, size=64)
    for number in range(6):
        image = read_image(data / "train/images" / f"train_{number:03d}.png")
        write_image(pairs / f"pair_{number:05d}_img.jpg", image)
    near = stored(run("out", f"folder={pairs}", "controls=false")[0])["figures"]["memorisation"]
    copied, others = near["generated"][:6], near["generated"][6:] + near["held_out"]
    assert max(copied) < min(others)
    assert near["rows"][:6] == [0, 1, 2, 3, 4, 5]
    assert len(near["closest"]) == 5
    for entry in near["closest"]:
        assert entry["generated"].removeprefix("pair_00") == entry["training"].removeprefix(
            "train_"
        )


def test_what_cannot_be_evaluated_is_refused(run, data, generator, tmp_path):
    checkpoint = f"gen_ckpt={generator(data)}"
    with pytest.raises(UserError, match=r"held no tiles out \(inner_share=0\)\. Use split=val"):
        run("out", checkpoint, "split=held_out")
    assert not (tmp_path / "out").exists()
    with held(tmp_path / "out"):
        with pytest.raises(UserError, match=r"out is in use by process"):
            run("out", checkpoint)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
    shutil.copy(data / "train/images/train_000.png", data / "val/images/val_000.png")
    with pytest.raises(UserError, match="has the same pixels as"):
        run("out", checkpoint)


def test_too_few_images_are_refused_with_what_brings_more(run, make_folder, paired, tmp_path):
    enough, few = (make_folder(tmp_path / str(n), train=n, val=n, size=32) for n in (16, 2))
    more, tiles = "Generate more pairs into .*num_samples", "Give more tiles, or train"
    for root, count, message in (
        (enough, 7, rf"7 generated, 16 validation.*\. {more}\.$"),
        (few, 16, rf"16 generated, 2 validation, 2 training\. {tiles}"),
        (few, 7, rf"7 generated, 2 .*\. {more}\. {tiles}"),
    ):
        with pytest.raises(UserError, match=message):
            run("out", f"folder={paired(root, count)}")
        shutil.rmtree(tmp_path / "pairs")


def test_a_group_that_stands_in_both_splits_is_warned_of(run, data, generator):
    for path in [*(data / "val").rglob("val_000.png")]:
        path.rename(path.with_name("train_000.png"))
    folder, _ = run("out", f"gen_ckpt={generator(data)}", "num_samples=16", "controls=false")
    assert "Warning: 1 location group (e.g. 'train_000')" in (folder / "evaluation.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "Set gen_ckpt to a G_e###.pt .* or folder"),
        (["gen_ckpt=a", "folder=b"], "one of the two"),
        (["gen_ckpt=a", "features=vgg"], "features=vgg is not one of"),
        (["gen_ckpt=a", "num_samples=3"], "num_samples=3: use 16 or more"),
        (["gen_ckpt=a", "split=test"], "split=test is not one of val, held_out"),
        (["folder=a", "split=held_out"], "Give gen_ckpt instead, or use split=val"),
        (["gen_ckpt=a", "variants=1"], "variants=1: use 2 or more"),
        (["gen_ckpt=missing.pt"], "missing.pt does not exist"),
        (["folder=missing"], "missing"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(run, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        run("out", *settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_script_tells_a_mistake_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 1 and re.fullmatch("error: Set gen_ckpt[^\n]*\n", done.stderr)
