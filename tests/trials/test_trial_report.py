import json

import numpy as np
import pytest
from PIL import Image

from geoseg_gan.data.palette import Palette, PaletteClass
from geoseg_gan.trials import plots
from geoseg_gan.trials.arms import recipe_of
from geoseg_gan.trials.report import write_report
from geoseg_gan.trials.statistics import Comparison, tally
from geoseg_gan.utils.errors import UserError

SETTINGS = {
    "share_gan": False,
    "train_tiles": 60,
    "inner_share": 0.15,
    "segmenter": {"arch": "unet", "encoder": "resnet34"},
    "train": {"epochs": 10, "bs": 8},
    "generate": {"num_samples": 10, "tau": "auto"},
    "train_segmenter": {"epochs": 30, "bs": 8},
}
GAINS = {
    "real": 0.0,
    "oversample": 0.01,
    "copy_paste": 0.0,
    "synthetic_0.1": 0.03,
    "synthetic_0.5": 0.05,
    "synthetic_only": -0.2,
}


def meaning(arm):
    """One for all ratios of a recipe, as a trial's settings give it."""
    return f"what {recipe_of(arm) or arm} says"


@pytest.fixture
def report(tmp_path):
    """Writes the report of some results, and returns its text and its figures."""
    palette = Palette([PaletteClass("Land", [10, 20, 30]), PaletteClass("Water", [0, 0, 250])])

    def write(results, **settings):
        pictures = [np.full((8, 8, 3), 99, np.uint8)] * 2
        labels = [np.zeros((8, 8), np.uint8)] * 2
        verdict, content = write_report(
            tmp_path, results, palette, SETTINGS | settings, meaning, pictures, labels
        )
        stored = json.loads((tmp_path / "trial.json").read_text())
        assert stored == content and verdict.sentence == stored["verdict"]["sentence"]
        return (tmp_path / "trial.md").read_text(), stored

    return write


def test_the_report_names_every_arm_with_its_interval(report, make_arms, tmp_path):
    text, figures = report(make_arms(GAINS, seeds=5, groups=12))
    lines = text.splitlines()
    assert lines[2].startswith("**Use it: +") and lines[2].endswith("at ratio 0.5.**")
    assert "Warning" not in text
    for arm in GAINS:
        row = next(line for line in lines if line.startswith(f"| {arm}"))
        level = figures["arms"][arm]["miou"]
        bounds = f"{100 * level['low']:.1f} to {100 * level['high']:.1f}"
        assert f"{100 * level['value']:.1f} ({bounds})" in row
    assert "synthetic_0.5 (picked)" in text and "12 location groups" in text
    assert "60 tiles, drawn by each seed" in text
    for name in ("trial.png", "trial_examples.png"):
        with Image.open(tmp_path / name) as picture:
            picture.load()
    # Image, mask, real, copy-paste and the picked arm.
    assert picture.size == (5 * 8 + 4 * 2, 2 * 8 + 2)


def test_the_picture_shows_arms_in_the_order_of_the_table_with_seeds_and_intervals(make_arms):
    comparison = Comparison([tally(run) for run in make_arms(GAINS, seeds=3)])
    arms = [arm for arm in comparison.arms if arm != "real"]
    rows = [plots._arm_row(comparison, arm, "synthetic_0.5") for arm in arms]
    assert [row.name for row in rows] == [
        *("oversample", "copy_paste", "synthetic_0.1", "synthetic_0.5 (picked)", "synthetic_only")
    ]
    gain = comparison.difference("oversample").miou
    bounds = " to ".join(f"{100 * bound:+.1f}" for bound in (gain.low, gain.high))
    assert plots._figures(rows[0]) == f"{100 * gain.value:+.1f} ({bounds}), 3 seeds"
    support = [{"share": 0.9, "tiles": 7.0}, {"share": 0.1, "tiles": 2.0}]
    for picked in ("synthetic_0.5", None):
        classes = plots._class_rows(comparison, picked, ["Land", "Water"], support)
        assert [row.name for row in classes][1] == "Water: 10.0 % of pixels, 2 tiles"
        assert (plots._figures(classes[0]) == "-") == (picked is None)
        assert plots.trial_picture(comparison, picked, ["Land", "Water"], support).shape[2] == 3


def test_every_class_stands_beside_what_it_rests_on(report, make_arms):
    text, figures = report(make_arms(GAINS))
    assert figures["support"]["Water"] == {
        "pixels": 100.0,
        "tiles": 2.0,
        "groups": 1.0,
        "share": 0.1,
        "val_pixels": 4000.0,
        "val_tiles": 4.0,
        "val_groups": 4.0,
    }
    assert "| Water | 100 (10.0%) | 2 | 1 | 4,000 | 4 | 4 |" in text


def test_every_arm_is_explained_once(report, make_arms):
    lines = report(make_arms(GAINS))[0].splitlines()
    assert "- real: what real says." in lines
    assert "- synthetic_0.1, synthetic_0.5, synthetic_only: what synthetic says." in lines


@pytest.mark.parametrize(
    ("arms", "generated", "title"),
    [
        (["real"], [], "Does synthetic data help?"),
        (["real", "synthetic_0.5"], ["synthetic_0.5"], "Does synthetic data help?"),
        (["real", "labels_0.5", "placebo_0.5"], [], "Do labels of unlabelled images help?"),
        (["real", "labelled_target_0.5"], [], "Do labels of unlabelled images help?"),
        (
            ["real", "labels_0.5", "synthetic_0.5"],
            ["synthetic_0.5"],
            "Do synthetic data or labels of unlabelled images help?",
        ),
    ],
)
def test_the_title_asks_about_what_is_mixed_in(arms, generated, title, report, make_arms):
    results = make_arms(dict.fromkeys(arms, 0.1))
    for result in results:
        if result.arm in generated:
            result.facts["generator_seconds"] = {"gan": 60.0}
    sources = {"labels": "unlabelled", "labelled_target": "unlabelled", "synthetic": "masks"}
    recipes = {name: {"generate": {"source": source}} for name, source in sources.items()}
    assert report(results, recipes=recipes)[0].splitlines()[0] == f"# {title}"


def test_intervals_of_an_iou_stay_within_what_it_can_be(report, make_run):
    right = {"real": [(0.8, 0.8), (0.9, 0.8)], "copy_paste": [(0.1, 0.9), (0.9, 0.2)]}
    runs = [make_run(arm, s, right[arm][s]) for arm in right for s in (0, 1)]
    text, figures = report(runs)
    level, gain = (figures["arms"]["copy_paste"][key] for key in ("miou", "difference"))
    assert level["low"] < 0 and level["high"] > 1 and gain["low"] < -1
    assert "(0.0 to 100.0)" in text and f"({100 * gain['low']:.1f} to " in text


def test_rare_classes_have_a_row_of_their_own(report, make_arms):
    results = make_arms({"real": 0.0, "copy_paste": 0.1}, seeds=3)
    assert "mean of those under" not in report(results)[0]
    for result in results:
        result.facts["support"] |= {"pixels": [980, 20]}
    text, figures = report(results)
    gain = figures["arms"]["copy_paste"]["rare_difference"]
    assert figures["rare"] == ["Water"] and gain["low"] < gain["value"] < gain["high"]
    row = next(line for line in text.splitlines() if line.startswith("| mean of those under 3%"))
    assert row.endswith(
        f"| +{100 * gain['value']:.1f} ({100 * gain['low']:.1f} to {100 * gain['high']:.1f}) |"
    )


def test_what_weakens_the_figures_is_told_first(report, make_arms):
    text, figures = report(make_arms(GAINS, seeds=3)[:-1], share_gan=True)
    head = text.split("| arm |")[0]
    for warning in figures["warnings"]:
        assert f"- Warning: {warning}" in head
    warned = "\n".join(figures["warnings"])
    assert "only 2 seeds of synthetic_only: " in warned and "only 3 seeds of real, " in warned
    assert "share one GAN" in warned
    assert "only 4 location groups" in warned
    assert "Results are missing: synthetic_only for seed 2." in warned


def test_seeds_whose_filter_kept_nothing_are_named(report, make_arms):
    results = make_arms(GAINS)
    for result in results:
        if result.seed == 1 and result.facts["kept"] is not None:
            result.facts["kept"] = 0
    text, figures = report(results)
    assert figures["warnings"][-1].startswith("The filter kept no pairs for seed 1")
    assert "0 of 10 for seed 1 (tau 0.500)" in text and "5 of 10 for seed 0" in text


@pytest.mark.parametrize(
    "arms", [["real"], ["copy_paste"], ["real", "copy_paste"], ["real", "synthetic_0.5"]]
)
@pytest.mark.parametrize(("seeds", "groups"), [(1, 1), (2, 3)])
def test_a_part_of_the_results_makes_a_report_too(report, make_arms, arms, seeds, groups):
    gains = {arm: GAINS[arm] for arm in arms}
    text, figures = report(make_arms(gains, seeds=seeds, groups=groups))
    assert set(figures["arms"]) == set(arms)
    assert ("No verdict" in text) == (len(arms) == 1 or arms[1] == "copy_paste" or seeds == 1)
    assert "nan" not in text


def test_a_class_that_validation_does_not_show_has_no_figure(report, make_arms):
    results = make_arms(GAINS)
    for result in results:
        result.val.counts[:, 1] = 0
    text, figures = report(results)
    assert figures["arms"]["real"]["classes"]["Water"]["value"] is None
    assert "| Water | 100 (10.0%) | 2 | 1 | 0 | 0 | 0 | - |" in text


def test_no_results_are_told(report):
    with pytest.raises(UserError, match="holds no results yet"):
        report([])


def test_time_counts_what_is_shared_once(report, make_arms):
    results = make_arms({"real": 0.0, "first_0.5": 0.1, "refined_0.5": 0.1}, seeds=2)
    for result in results:
        if result.arm != "real":
            refined = {"refined-1": 240.0} if result.arm == "refined_0.5" else {}
            result.facts.update(
                pairs=result.arm,
                gan_seed=0,
                synthesis_seconds=60.0,
                generator_seconds={"gan": 600.0} | refined,
            )
    text, figures = report(results, share_gan=True)
    assert [entry["seed"] for entry in figures["filter"]] == [0, 0]
    assert "Time: 6 minutes for segmenters, 16 for generators and their pairs." in text
