from types import SimpleNamespace

import psutil
import pytest
import torch
from defaults import defaults

from geoseg_gan.utils.device import TrainerSettings, free_memory


@pytest.mark.parametrize(
    ("accelerator", "supported", "expected"),
    [("auto", True, "bf16-mixed"), ("gpu", False, "32-true"), ("cpu", True, "32-true")],
)
def test_the_default_precision_follows_the_device(accelerator, supported, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    settings = defaults(TrainerSettings, accelerator)
    assert settings.full_precision(None) == expected
    assert settings.full_precision("16") == "16-mixed" and settings.full_precision("auto") == "auto"


def group(folder, limit, used, files=0):
    figures = {"max": limit, "current": used, "stat": f"cache 5\ninactive_file {files}"}
    return {f"sys/fs/cgroup/{folder}/memory.{name}": f"{n}\n" for name, n in figures.items()}


GROUP = {"proc/self/cgroup": "0::/a/b\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (GROUP, 1000),  # the group's folder is not there
        (GROUP | group("a/b", "max", 10), 1000),
        (GROUP | group("a/b", 500, 100), 400),
        (GROUP | group("a/b", 500, 450, files=350), 400),  # what was read gives way
        (GROUP | group("a/b", "max", 10) | group("a", 700, 100), 600),  # of the group around it
        (GROUP | group(".", 300, 400), 0),  # a container sees its own group as the root
    ],
)
def test_the_least_of_machine_and_containers_counts(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == expected
