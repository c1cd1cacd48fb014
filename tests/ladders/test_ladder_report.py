import json

import numpy as np
import pytest

from geoseg_gan.errors import UserError
from geoseg_gan.files import write_json
from geoseg_gan.ladders.plots import Panel, ladder_picture
from geoseg_gan.ladders.report import write_report
from geoseg_gan.ladders.results import read_results, result_path
from geoseg_gan.ladders.targets import targets

COMMON = ["image_size=64", "max_minutes=10"]
LADDER = {"base": [], "good": ["crops=balanced"], "other": []}


def made(row, seed=0, overrides=(), **changes):
    """A result: KID x 1000 of 420 held-out and 440 validation, 20 above which is the floor."""
    figures = {
        "kid_floor": 0.02,
        "agreement": {"painted": {"miou": 0.57}, "real": {"miou": 0.6}},
        "diversity": {"painted": 0.9, "real": 1.2},
        "spectrum": {
            "painted": {"high": -0.5, "checkerboard": 0.15}, "real": {"checkerboard": 0.1}
        },
        "repetition": {"painted": 0.3, "real": None},
    } | changes  # fmt: skip
    training = {"steps": 50, "images": 20000 + 2000 * seed, "images_per_second": 30.0}
    return {
        "row": row,
        "seed": seed,
        "overrides": list(overrides),
        "common": COMMON,
        "num_samples": 400,
        "segmenter": "5" * 64,
        "training": training | {"seconds": 600.0, "resumed": 0.0},
        "splits": {
            split: {"kid": kid} | figures for split, kid in (("held_out", 0.42), ("val", 0.44))
        },
    }


def store(folder, *results):
    for result in results:
        write_json(result_path(folder, result["row"], result["seed"]), result)
    return folder


def test_targets_are_judged_against_base_and_real_images():
    base = [made("base")]
    found = targets([made("a")], base)
    assert {name: target.reached for name, target in found.items()} == {
        "KID held-out": False, "KID validation": False, "agreement": True, "diversity": True,
        "checkerboard": True,
    }  # fmt: skip
    assert found["agreement"].figure == pytest.approx(0.95)
    # 0.209 above the floor is less than half of 0.42, but not of 0.40.
    half = targets([made("a", kid=0.229)], base)
    assert half["KID validation"].reached and not half["KID held-out"].reached
    assert str(half["KID validation"]) == "yes (0.50)"
    grid = {"painted": {"high": 0, "checkerboard": 0.21}, "real": {"checkerboard": 0.1}}
    agreement = {"painted": {"miou": 0.56}, "real": {"miou": 0.6}}
    bad = targets(
        [made("a", spectrum=grid, agreement=agreement, diversity={"painted": 0.5, "real": 1.2})],
        base,
    )
    assert not any(target.reached for target in bad.values())


def test_what_cannot_be_judged_is_left_open():
    base = [made("base", diversity={"painted": 0.9, "real": None})]
    found = targets(base, base)
    assert str(found["KID held-out"]) == str(found["diversity"]) == "-"
    assert found["agreement"].reached
    assert targets(base, [])["KID validation"].reached is None


def test_the_table_tells_rows_in_order_with_the_spread_over_seeds(tmp_path):
    other = made("good", 1, ["crops=balanced"], kid=0.12)
    store(tmp_path, other, made("good", 0, ["crops=balanced"], kid=0.10), made("base"))
    results = read_results(tmp_path, COMMON[::-1], LADDER)
    assert list(results) == ["base", "good"] and [r["seed"] for r in results["good"]] == [0, 1]
    write_report(tmp_path, results, "base")
    text = (tmp_path / "ladder.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[1][1:] == [
        "", "0", "20,000", "30.0", "420 (20)", "440 (20)", "57.0 (60.0)", "0.900 (1.200)",
        "-0.50", "0.15 (0.10)", "0.300 (-) |",
    ]  # fmt: skip
    assert rows[2][1:6] == [
        "`crops=balanced`",
        "0, 1",
        "21,000 ± 1,000",
        "30.0 ± 0.0",
        "110 ± 10 (20)",
    ]
    assert rows[4][-1] == "- |" and rows[5][-1] == "yes |"
    assert (tmp_path / "ladder.png").is_file() and "## Samples" not in text
    # A copy of the results alone gives the same table.
    copy = tmp_path / "copy"
    store(copy, *(json.loads(path.read_text()) for path in (tmp_path / "results").iterdir()))
    write_report(copy, read_results(copy, COMMON, LADDER), "base")
    assert (copy / "ladder.md").read_text() == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"common": ["image_size=32", "max_minutes=10"]}, "common had image_size=32 where this"),
        ({"overrides": ["crops=rare"]}, "row good had crops=rare where this call has crops=balanc"),
        ({"segmenter": "6" * 64}, "was evaluated with segmenter=666"),
        ({"splits": {}}, "cannot be read"),
    ],
)
def test_results_of_other_settings_are_refused(tmp_path, changes, message):
    store(tmp_path, made("base"), made("good", 0, ["crops=balanced"]) | changes)
    with pytest.raises(UserError, match=message):
        read_results(tmp_path, COMMON, LADDER)


def test_every_row_has_its_bar_and_real_images_their_line():
    def red(picture):
        return int((np.abs(picture.astype(int) - (214, 39, 40)).max(-1) < 8).sum())

    bars = [[0.5, 0.7], [], [0.2]]
    with_line = ladder_picture(["base", "a", "b"], [Panel("KID", bars, 0.1)])
    assert red(with_line) > 20 and not red(ladder_picture(["a"], [Panel("KID", [[0.5]])]))
