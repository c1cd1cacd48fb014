"""The command: its exit code, its files, and the config that it proposes, which trains."""

import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from defaults import TINY
from made import regions, save, texture

from geoseg_gan.config import compose
from geoseg_gan.data.settings import check_data_command, tile_command
from geoseg_gan.training.settings import TrainSegmenterConfig, train_command

COLORS = np.array([[60, 16, 152], [132, 41, 246], [110, 193, 228], [254, 221, 58]], np.uint8)
FILES = {".lock", "findings.json", "report.html", "report.md"}


class Content(HTMLParser):
    """Tags with their attributes, and texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def root(folder):
    return folder(lambda label: COLORS[label])


def next_command(output):
    """The name and the words of the command that check_data prints."""
    (line,) = re.findall("Next: python scripts/(.*)", output)
    name, *words = shlex.split(line)
    return [name.removesuffix(".py"), *words]


def files(folder):
    return {path.name for path in folder.iterdir()}


def test_a_sound_folder_ends_with_0_and_a_page(root, tmp_path, run_command, capsys):
    assert run_command(check_data_command, "data_root=data", "data=dubai", "image_size=64") == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "12 pairs: can be trained on, with 1 warning" in shown.out
    out = tmp_path / "runs" / "check"
    assert files(out) == FILES
    content = Content((out / "report.html").read_text())
    images = [attributes["src"] for tag, attributes in content.tags if tag == "img"]
    assert len(images) == 10 and all(src.startswith("data:image/jpeg;base64,") for src in images)
    assert not {tag for tag, _ in content.tags} & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|url\(", (out / "report.html").read_text())
    markdown = (out / "report.md").read_text()
    rows = dict(re.findall(r"^\| \d (\w+) \|.*\| ([\d,]+) \| \d+ \|$", markdown, re.MULTILINE))
    facts = json.loads((out / "findings.json").read_text())
    assert {name: int(count.replace(",", "")) for name, count in rows.items()} == {
        name: count for name, count in facts["pixels"].items() if name != "ignore"
    }
    labels = [regions(1000 * (s > 7) + n, 4) for s, n in enumerate([*range(8), *range(4)])]
    assert facts["pixels"]["Road"] == sum(int((label == 2).sum()) for label in labels)
    assert (facts["errors"], facts["warnings"]) == (0, 1)


def test_an_error_ends_with_1_and_a_page_all_the_same(root, tmp_path, run_command, capsys):
    (root / "train" / "images" / "<b>&.png").write_bytes(b"no")
    assert run_command(check_data_command, "data_root=data", "data=dubai", "out_dir=out") == 1
    shown = capsys.readouterr()
    assert re.fullmatch(r"error: data: .*See out/report.html\n", shown.err)
    assert files(tmp_path / "out") == FILES
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>&.png" not in page and "&lt;b&gt;&amp;.png" in page
    assert "\\<b\\>" in (tmp_path / "out" / "report.md").read_text()


def test_a_report_is_replaced_and_nothing_else(root, tmp_path, run_command, capsys):
    arguments = ("data_root=data", "data=dubai", "image_size=64")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert run_command(check_data_command, *arguments, "out_dir=mine") == 1
    assert "holds something that check_data has not written" in capsys.readouterr().err
    assert files(tmp_path / "mine") - {".lock"} == {"notes.txt"}
    assert run_command(check_data_command, *arguments, "out_dir=out") == 0
    for path in (root / "val" / "masks").iterdir():
        path.unlink()
    assert run_command(check_data_command, *arguments, "out_dir=out") == 1
    assert "None of the 4 images in val has a mask" in (tmp_path / "out/report.md").read_text()
    assert run_command(check_data_command, "data_root=data", "out_dir=data/train/x") == 1
    assert "lies inside of the data" in capsys.readouterr().err


def test_the_printed_command_has_all_that_the_proposed_config_needs(
    folder, tmp_path, run_command, capsys
):
    folder(lambda label: label * np.uint8(40))
    assert run_command(check_data_command, "data_root=data", "out_dir=out") == 1  # of 256 pixels
    _, *words = command = next_command(capsys.readouterr().out)
    assert command == [
        *("train", "--config-dir", "out", "data=proposed", "data_root=data", "image_size=64")
    ]
    config = tmp_path / "out" / "data" / "proposed.yaml"
    first = config.read_text()
    assert yaml.safe_load(first)["index_map"] == {0: 0, 40: 1, 80: 2, 120: 3}
    assert run_command(check_data_command, *words, "out_dir=again") == 0
    assert next_command(capsys.readouterr().out) == ["train", *words]
    assert run_command(check_data_command, "data_root=data", "out_dir=out") == 1
    assert files(config.parent) == {"proposed.yaml"}  # the same again
    config.write_text(edited := first.replace('"class_40"', "Road"))
    assert run_command(check_data_command, "data_root=data", "out_dir=out") == 1
    assert config.read_text() == edited
    assert files(config.parent) == {"proposed.yaml", "proposed_2.yaml"}
    assert "data=proposed_2" in capsys.readouterr().out


def test_the_printed_command_keeps_what_the_proposed_config_does_not_replace(
    folder, run_command, capsys
):
    folder(lambda label: (label > 1) * np.uint8(255))
    given = ("data_root=data", "image_size=64", "data.mask_format=index", "data.gsd=0.5")
    assert run_command(check_data_command, *given, "out_dir=out") == 1
    _, *words = next_command(capsys.readouterr().out)
    assert "data.gsd=0.5" in words and "data.mask_format=index" not in words
    assert run_command(check_data_command, *words, "out_dir=again") == 0


def test_a_folder_with_unlabelled_images_has_a_command_that_uses_them(root, run_command, capsys):
    save(root / "unlabelled/new 1.png", texture(7))
    assert run_command(check_data_command, "data_root=data", "data=dubai", "image_size=64") == 0
    shown = capsys.readouterr().out
    (words,) = re.findall(r"Or, with unlabelled/: python scripts/train_segmenter\.py (.*)", shown)
    config = compose(TrainSegmenterConfig, shlex.split(words))
    assert (config.data_root, config.unlabelled) == ("data", "data/unlabelled")
    assert next_command(shown) == ["train", *shlex.split(words)[:-1]]
    assert f"scripts/train_segmenter.py {words}\n" in Path("runs/check/report.md").read_text()


@pytest.mark.slow
def test_the_printed_commands_train_and_check_again(folder, tmp_path, run_command, capsys):
    folder(lambda label: label * np.uint8(40))
    assert run_command(check_data_command, "data_root=data", "out_dir=out", "image_size=64") == 1
    networks = [text for text in TINY if not text.startswith(("data.palette", "image_size"))]
    name, *words = next_command(capsys.readouterr().out)
    assert name == "train" and run_command(train_command, *words, *networks, "epochs=1") == 0
    assert (tmp_path / "runs" / "label2img" / "G_e001.pt").is_file()
    shown = capsys.readouterr().out
    (more,) = re.findall("More about the data: python scripts/check_data.py (.*)", shown)
    assert run_command(check_data_command, *shlex.split(more), "out_dir=third") == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*outside the palette")
def test_the_proposed_config_of_damaged_masks_cuts_tiles(tmp_path, run_command, capsys):
    for number in range(4):
        save(tmp_path / "raw" / "images" / f"s_{number}.png", texture(number, 128))
        label = COLORS[::-1][regions(number, 3, 128, cell=32)] // 2
        save(tmp_path / "raw" / "masks" / f"s_{number}.jpg", label)
    assert run_command(check_data_command, "data_root=raw", "out_dir=out", "image_size=64") == 1
    name, *words = next_command(capsys.readouterr().out)
    assert name == "tile" and run_command(tile_command, *words) == 0
    assert len(list((tmp_path / "data" / "raw").glob("*/masks/*.png"))) == 16


def test_an_empty_folder_and_a_stream_are_refused_in_a_line(tmp_path, run_command, capsys):
    (tmp_path / "data").mkdir()
    assert run_command(check_data_command) == 1
    assert "data_root=data holds no images" in capsys.readouterr().err
    (tmp_path / "data" / "stream.json").touch()
    assert run_command(check_data_command) == 1
    assert "is a stream" in capsys.readouterr().err
    assert run_command(check_data_command, "data_root=none") == 1
    assert "is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").rglob("*.*"))
