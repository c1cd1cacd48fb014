import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from geoseg_gan.config import read_group
from geoseg_gan.describe import KINDS, PUBLISHED, count_macs, describe, measure
from geoseg_gan.errors import UserError
from geoseg_gan.models.backbone import VGG, Backbone
from geoseg_gan.models.modulated import Clade
from geoseg_gan.models.registry import build_discriminator, build_generator
from geoseg_gan.schemas import DescribeConfig

ROOT = Path(__file__).parents[1]
CHOICES = [
    (kind, path.stem)
    for kind in KINDS
    for path in sorted((ROOT / "configs/model" / kind).glob("*.yaml"))
]


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """The figures, and the file, of one call with the default settings."""
    path = tmp_path_factory.mktemp("describe") / "new" / "sizes.md"
    return describe(DescribeConfig(out=str(path))), path.read_text()


@pytest.mark.parametrize("network", PUBLISHED, ids=" ".join)
def test_parameters_and_work_are_those_of_the_papers(described, network):
    figures, text = described
    own, published = "/".join(network), PUBLISHED[network]
    assert figures[f"{own}/parameters"] == pytest.approx(published.parameters, rel=0.05)
    assert figures[f"{own}/gmac"] == pytest.approx(published.gmac, rel=0.05)
    assert f"- {network[0]} `{network[1]}`: " in text


@pytest.mark.parametrize("network", [n for n in PUBLISHED if n[0] == "generator"], ids=" ".join)
def test_the_papers_noise_and_channels_explain_the_deviation(network):
    kind, choice = network
    settings = read_group(f"model/{kind}")[choice] | PUBLISHED[network].noise
    # 7 classes and the unknown: the 8 channels that the published figures are counted with.
    size = measure(kind, settings, DescribeConfig(num_classes=7))
    lookups = 0
    if choice == "clade":
        lookups = _lookups(build_generator(settings, 7, 3))
        assert lookups > 0.5e9
    # Half a unit of the last published digit, of 0.1 M and 1 GMAC.
    assert size.parameters / 1e6 == pytest.approx(PUBLISHED[network].parameters, abs=0.05)
    assert (size.macs - lookups) / 1e9 == pytest.approx(PUBLISHED[network].gmac, abs=0.5)


def _lookups(network):
    """Multiply-adds of CLADE's tables alone, by hand."""
    found = []

    def count(layer, inputs, _):
        table = layer.gamma.weight.numel() + layer.beta.weight.numel()
        found.append(inputs[0].shape[-2] * inputs[0].shape[-1] * table)

    for layer in network.modules():
        if isinstance(layer, Clade):
            layer.register_forward_hook(count)
    network.to("meta").eval()
    with torch.no_grad():
        network(torch.empty(1, 7, 256, 256, device="meta"), torch.empty(1, 0, 256, 256).to("meta"))
    return sum(found)


def test_every_choice_of_both_groups_is_in_the_table(described):
    figures, text = described
    assert {tuple(key.split("/")[:2]) for key in figures} == set(CHOICES)
    for kind in KINDS:
        table = text.split(f"| {kind} ")[1].split("\n\n")[0]
        rows = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
        assert rows == [choice for own, choice in CHOICES if own == kind]


def test_macs_are_those_counted_by_hand():
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),  # 8 * 8 * 5 outputs, 3 * 9 products each
        nn.ReLU(),
        nn.Conv2d(5, 10, 4, stride=2, padding=1, groups=5),  # 4 * 4 * 10 outputs, 16 each
    )
    expected = 8 * 8 * 5 * 27 + 4 * 4 * 10 * 16
    assert count_macs(network, torch.zeros(1, 3, 8, 8)) == expected
    assert count_macs(network.to("meta"), torch.zeros(1, 3, 8, 8, device="meta")) == expected


def test_spectral_norm_changes_neither_count():
    settings = {"name": "patch", "width": 8, "layers": 1, "scales": 1, "spectral_norm": True}
    size = measure("discriminator", settings, DescribeConfig(image_size=32))
    channels = 3 + 8 + 1
    assert size.parameters == channels * 8 * 16 + 8 * 16 * 16 + 16 * 16 + 8 + 16 + 1
    assert size.macs == 16**2 * channels * 8 * 16 + 15**2 * 8 * 16 * 16 + 14**2 * 16 * 16
    network = build_discriminator(settings, 8, 3)
    assert sum(p.numel() for p in network.parameters()) == size.parameters
    assert count_macs(network, torch.zeros(1, 3, 32, 32), torch.zeros(1, 8, 32, 32)) == size.macs


def test_a_backbone_is_counted_as_work_but_not_as_trained(described):
    settings = read_group("model/discriminator")["projected_light"]
    size = measure("discriminator", settings, DescribeConfig())
    backbone = Backbone("lite2", 3)
    skeleton = backbone.skeleton()
    backbone(torch.zeros(1, 3, 32, 32))
    assert all(p.is_meta for p in skeleton.parameters())
    frozen = sum(p.numel() for p in backbone._network.parameters())
    assert size.backbones == {"lite2": frozen}
    image = torch.empty(1, 3, 256, 256, device="meta")
    assert size.macs > count_macs(skeleton, image) > 0.5e9
    trained = described[0]["discriminator/projected_light/parameters"]
    assert trained == size.parameters / 1e6 < frozen / 1e6
    assert f"| {trained:.2f} + {frozen / 1e6:.1f} frozen |" in described[1]


def test_backbones_give_shapes_without_weights():
    maps = Backbone(VGG, 3)(torch.empty(1, 3, 64, 64, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 64, 64),
        (128, 32, 32),
        (256, 16, 16),
        (512, 8, 8),
        (512, 4, 4),
    ]


def test_sizes_that_do_not_fit_are_told_in_their_row(monkeypatch, capsys):
    monkeypatch.setattr(
        "geoseg_gan.describe.read_group",
        lambda group: {
            "a": {"name": "unet", "width": 4, "depth": 4}
            if group == "model/generator"
            else {"name": "patch", "width": 4}
        },
    )
    figures = describe(DescribeConfig(image_size=24, num_classes=2))
    assert set(figures) == {"generator/a/parameters", "discriminator/a/parameters"}
    text = capsys.readouterr().out
    assert "- generator `a`: Takes sides that are multiples of 16." in text
    assert "- discriminator `a`: Takes sides of 64 or more." in text
    assert "`image_size=24 num_classes=2 image_channels=3`" in text
    assert "Published figures, of `image_size=256 num_classes=8 image_channels=3`" in text
    assert "%" not in text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("image_size=0", "image_size=0 must be 1 or more"),
        ("num_classes=-1", "num_classes=-1 must be 1 or more"),
        ("image_channels=0", "image_channels=0 must be 1 or more"),
        ("image_size=big", "image_size"),
        ("out=there.md", "out=there.md exists. Choose another file, or remove it."),
        ("sides=3", "there is no setting 'sides'"),
    ],
)
def test_a_mistake_is_one_line(argument, message, tmp_path, monkeypatch, capsys):
    from geoseg_gan.describe import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.md").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["describe.py", argument])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert message in shown.err and not shown.out
    assert [p.name for p in tmp_path.iterdir()] == ["there.md"]
    assert (tmp_path / "there.md").read_text() == "mine"


def test_a_file_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("geoseg_gan.describe.read_group", lambda group: {})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        describe(DescribeConfig(out=str(tmp_path / "file/sizes.md")))


def test_the_command_composes_the_groups_within_its_own_run(tmp_path, monkeypatch, capsys):
    from geoseg_gan.describe import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["describe.py", "image_size=32", "out=a.md"])
    main()
    shown = capsys.readouterr().out
    assert shown.endswith("\nWrote a.md.\n")
    assert shown.startswith((tmp_path / "a.md").read_text())


def test_the_documented_table_is_what_the_command_prints(described):
    page = (ROOT / "docs/models.md").read_text()
    assert described[1] in page, "configs/model has changed: `make sizes` writes the table anew"
