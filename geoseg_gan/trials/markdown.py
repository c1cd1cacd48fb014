"""A trial's figures as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from geoseg_gan.errors import plural
from geoseg_gan.trials.results import REAL, mix_of
from geoseg_gan.trials.verdict import FREE_RIVALS, RULE, signed

PICTURE, EXAMPLES = "trial.png", "trial_examples.png"
RARE = 0.03
"""A class with a smaller share of the training pixels counts as rare."""


def markdown(content: Mapping[str, Any], arms: Sequence[str], shown: Sequence[str]) -> str:
    """The text of `trial.md`.

    Args:
        content: What `trial.json` holds.
        arms: The arms, in order.
        shown: Those of them in the picture of examples.
    """
    names = list(content["support"])
    verdict, settings = content["verdict"], content["settings"]
    lines = ["# Does synthetic data help?", "", f"**{verdict['sentence']}**", ""]
    if verdict["rival"]:
        lines += [verdict["rival"], ""]
    lines += [f"- Warning: {text}" for text in content["warnings"]]
    lines += [""] * bool(content["warnings"])
    tiles, groups = content["validation"]["tiles"], content["validation"]["groups"]
    lines += [
        f"Figures are IoU in per cent on {plural(tiles, 'real validation tile')} of "
        f"{plural(groups, 'group')} of ground, which were read once, at the end of each run; in "
        "parentheses 95 % intervals from a bootstrap over seeds and groups. All arms have the same "
        "number of updates, schedule and augmentation, and with each seed the same first weights.",
        "",
        "| arm | seeds | mIoU | difference to real only | held-out training tiles |",
        "|---|---|---|---|---|",
    ]
    for arm in arms:
        entry = content["arms"][arm]
        difference = "" if arm == REAL else _shown(entry["difference"], sign=True)
        picked = " (picked)" if arm == verdict["arm"] else ""
        lines.append(
            f"| {arm}{picked} | {len(entry['seeds'])} | {_shown(entry['miou'])} | {difference} | "
            f"{100 * entry['inner_miou']:.1f} |"
        )
    others = [arm for arm in arms if arm != REAL]
    lines += ["", f"![differences]({PICTURE})", "", "## By class", ""]
    lines += [
        f"IoU of {REAL}, and each arm's difference to it. Support is what the class rests on: "
        "pixels (with their share), tiles and groups of ground among the real tiles that are "
        "trained on, averaged over the seeds, and among the validation tiles. A class that one "
        "group alone validates has no interval.",
        "",
        f"| class | trained on: pixels | tiles | groups | validated on: pixels | tiles | groups | "
        f"{' | '.join([REAL, *others])} |",
        "|" + "---|" * (8 + len(others)),
    ]
    for name in names:
        support = content["support"][name]
        cells = [
            name,
            f"{support['pixels']:,.0f} ({support['share']:.1%})",
            f"{support['tiles']:.0f}",
            f"{support['groups']:.0f}",
            *(f"{support[f'val_{key}']:,.0f}" for key in ("pixels", "tiles", "groups")),
            _shown(content["arms"][REAL]["classes"][name]) if REAL in content["arms"] else "-",
        ]
        cells += [
            _shown(content["arms"][arm]["class_differences"][name], sign=True) for arm in others
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if content["rare"]:
        figures = content["arms"]
        cells = [f"mean of those under {RARE:.0%}", *[""] * 6]
        cells += [_shown(figures[REAL]["rare"]) if REAL in arms else "-"]
        cells += [_shown(figures[arm]["rare_difference"], sign=True) for arm in others]
        lines.append(f"| {' | '.join(cells)} |")
    lines += _inner(content, arms)
    lines += ["", "## Examples", "", f"![examples]({EXAMPLES})", ""]
    lines += [f"Image, mask, and predictions with the first seed: {', '.join(shown)}.", ""]
    lines += _left_out(content["without_group"], verdict["arm"])
    lines += ["## How it was done", "", RULE, ""]
    lines += _done(content, settings)
    return "\n".join(lines) + "\n"


def _inner(content: Mapping[str, Any], arms: Sequence[str]) -> list[str]:
    """By class on the tiles that all choices are made on, `mixing.classes` for one."""
    mixed = [arm for arm in arms if mix_of(arm) is not None]
    if not mixed or REAL not in arms:
        return []
    lines = [
        "",
        "On the held-out training tiles, by which classes may be chosen (`mixing.classes`):",
    ]
    lines += ["", f"| class | {' | '.join(mixed)} |", "|" + "---|" * (1 + len(mixed))]
    for name in content["support"]:
        gains = [content["arms"][arm]["inner_class_differences"][name] for arm in mixed]
        cells = ["-" if gain is None else signed(gain) for gain in gains]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _left_out(without: Mapping[str, float], arm: str | None) -> list[str]:
    if not without:
        return []
    low, high = min(without, key=lambda g: without[g]), max(without, key=lambda g: without[g])
    return [
        "## Each group of validation ground left out in turn",
        "",
        f"The difference in mIoU of {arm} then lies between {signed(without[low])} (without {low}) "
        f"and {signed(without[high])} (without {high}); all are in `trial.json`.",
        "",
    ]


def _done(content: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    runs, pairs = content["runs"], content["filter"]
    training = sum(run["seconds"] for run in runs)
    generators = {
        (entry["seed"], name): seconds
        for entry in pairs
        for name, seconds in entry["generators"].items()
    }
    painting = sum(entry["seconds"] for entry in pairs) + sum(generators.values())
    kept = [
        f"{entry['kept']} of {entry['painted']} with seed {entry['seed']}"
        f"{'' if len({e['pairs'] for e in pairs}) == 1 else ' in ' + entry['pairs']}"
        f" (tau {entry['tau']:.3f})"
        for entry in pairs
    ]
    tiles = "all tiles"
    if settings["train_fraction"] is not None:
        tiles = f"{settings['train_fraction']:.0%} of the tiles, drawn by each seed"
    if settings["train_tiles"] is not None:
        tiles = f"{plural(settings['train_tiles'], 'tile')}, drawn by each seed"
    held_out = f"{settings['inner_share']:.0%}"
    return [
        f"- Training: {tiles}; {held_out} of them, by ground, are held out of everything.",
        f"- Generators: {plural(settings['epochs'], 'epoch')}, batches of {settings['bs']}; "
        f"{plural(settings['num_samples'], 'pair')} painted for each seed, tau={settings['tau']}.",
        f"- Pairs kept: {', '.join(kept) or 'none were painted'}.",
        f"- Segmenters: {settings['segmenter']['arch']} on {settings['segmenter']['encoder']}, "
        f"{plural(settings['segmenter_epochs'], 'epoch')}, batches of {settings['segmenter_bs']}.",
        f"- Time: {training / 60:.0f} minutes for segmenters, {painting / 60:.0f} "
        "for generators and their pairs.",
        f"- Arms that need no generated pair: {', '.join(FREE_RIVALS)}. All settings are in "
        "`config.yaml`, all figures in `trial.json`, what they rest on in `results/`.",
    ]


def _shown(estimate: Mapping[str, float | None], sign: bool = False) -> str:
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    text = signed(value) if sign else f"{100 * value:.1f}"
    return text if low is None or high is None else f"{text} ({100 * low:.1f} to {100 * high:.1f})"
