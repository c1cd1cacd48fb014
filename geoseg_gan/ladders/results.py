"""Results of a ladder: a small JSON file for every row and seed, which holds all that is told."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geoseg_gan.errors import UserError
from geoseg_gan.files import write_json

SPLITS = ("held_out", "val")
"""What every generator is judged on: other tiles of its training ground, then other ground."""

Result = dict[str, Any]


def result_path(folder: Path, row: str, seed: int) -> Path:
    """Where a result lies in a ladder's folder."""
    return folder / "results" / f"{row}_seed_{seed:03d}.json"


def store_result(
    folder: Path,
    row: str,
    seed: int,
    *,
    overrides: Sequence[str],
    common: Sequence[str],
    training: Mapping[str, Any],
    evaluations: Mapping[str, Mapping[str, Any]],
) -> Result:
    """Writes a result.

    Args:
        folder: The ladder's folder.
        row: The row.
        seed: The seed.
        overrides: What the row changes.
        common: What all rows have.
        training: "steps", "images", "seconds", "images_per_second", and "resumed", the minutes
            that were trained before an interruption.
        evaluations: What `evaluation.json` holds, by split.

    Returns:
        What the file holds.
    """
    any_of = evaluations[SPLITS[0]]
    content = {
        "row": row,
        "seed": seed,
        "overrides": list(overrides),
        "common": list(common),
        "num_samples": any_of["settings"]["num_samples"],
        "checkpoint": any_of["checkpoint"]["sha256"],
        "segmenter": (any_of["segmenter"] or {}).get("sha256"),
        "training": dict(training),
        "splits": {split: _figures(evaluations[split]["figures"]) for split in SPLITS},
    }
    write_json(result_path(folder, row, seed), content)
    return content


def read_results(
    folder: Path, common: Sequence[str], ladder: Mapping[str, Sequence[str]]
) -> dict[str, list[Result]]:
    """Reads all results there are, of which each must belong to the ladder.

    Args:
        folder: The ladder's folder.
        common: What all rows have.
        ladder: What each row changes.

    Returns:
        Results by row, in the order of the ladder and then by name; each row's by seed.

    Raises:
        UserError: If a file cannot be read, or comes from other settings than these.
    """
    found: dict[str, list[Result]] = {row: [] for row in ladder}
    first: Result | None = None
    for path in sorted((folder / "results").glob("*_seed_*.json")):
        result = _read(path)
        _refuse_other("common", path, result["common"], common)
        rows = found.setdefault(result["row"], [])
        own = ladder.get(result["row"], rows[0]["overrides"] if rows else result["overrides"])
        _refuse_other(f"row {result['row']}", path, result["overrides"], own)
        first = first or result
        for key in ("num_samples", "segmenter"):
            if result[key] != first[key]:
                raise UserError(
                    f"{path} was evaluated with {key}={result[key]}, other results with "
                    f"{first[key]}. Keep those of one kind in a folder."
                )
        rows.append(result)
    return {row: sorted(rows, key=lambda r: r["seed"]) for row, rows in found.items() if rows}


def _read(path: Path) -> Result:
    try:
        content = json.loads(path.read_text())
        for key in ("row", "seed", "overrides", "common", "num_samples", "segmenter", "training"):
            content[key]
        for split in SPLITS:
            content["splits"][split]["kid"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error!r}). Remove it, and call again.") from None
    assert isinstance(content, dict)
    return content


def _refuse_other(what: str, path: Path, stored: Sequence[str], given: Sequence[str]) -> None:
    if sorted(stored) != sorted(given):
        theirs = ", ".join(o for o in stored if o not in given) or "less"
        ours = ", ".join(o for o in given if o not in stored) or "less"
        raise UserError(
            f"{path} was made with other settings: {what} had {theirs} where this call has {ours}. "
            "Give the same settings, or choose another out_dir."
        )


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of one evaluation."""
    fidelity, spectrum, texture = figures["fidelity"], figures["spectrum"], figures["texture"]
    painted, ground, halves = (
        fidelity[name] for name in ("painted", "training ground", "real halves")
    )
    means = {kind: float(np.mean(texture[kind] or [np.nan])) for kind in ("painted", "real")}
    return {
        "images": figures["images"]["painted"],
        "kid": painted["kid"],
        "kid_error": painted["kid_error"],
        "kid_floor": ground["kid"],
        "kid_floor_error": ground["kid_error"],
        "kid_halves": halves["kid"],
        "fid": painted["fid"],
        **figures["coverage"]["painted"],
        "agreement": figures["agreement"],
        "diversity": {kind: figures["diversity"][kind]["layers"] for kind in ("painted", "real")},
        "spectrum": {"painted": spectrum["gap"], "real": spectrum["real_gap"]},
        "repetition": {kind: None if np.isnan(v) else v for kind, v in means.items()},
    }
