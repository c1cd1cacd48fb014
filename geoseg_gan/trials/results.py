"""The stored result of a run: what the statistics of a trial need."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.utils.confusion import TileConfusions
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path

FORMAT = 1


@dataclass(frozen=True)
class RunResult:
    """The result of one arm and seed.

    Attributes:
        arm: The arm's name.
        seed: Its seed.
        val: Its segmenter's confusions on the real validation tiles.
        inner: The same on the real training tiles that were held out of training.
        examples: Predicted classes of some validation windows, the same for all runs of a trial,
            shape (E, S, S), uint8.
        facts: Plain values about the run: "kept" and "generated" (synthetic pairs; None
            for arms without), "pairs" (the folder that they lie in), "tau", "gan_seed" (the
            seed whose generator and pairs it shares), "seconds" (of its segmenter's training),
            "synthesis_seconds" (of its pairs), "generator_seconds" (of each generator's training,
            by its folder), "support" (of the fitted real tiles: "pixels", "tiles" and
            "groups", a list of C numbers each, and "total_tiles").
    """

    arm: str
    seed: int
    val: TileConfusions
    inner: TileConfusions
    examples: npt.NDArray[np.uint8]
    facts: dict[str, Any]


def result_path(folder: Path, arm: str, seed: int) -> Path:
    """The file of a result in a trial's folder."""
    return folder / "results" / arm / f"seed_{seed:03d}.npz"


def write_result(folder: Path, result: RunResult) -> None:
    """Writes a result into a trial's folder, whole or not at all."""
    facts = {"format": FORMAT, "arm": result.arm, "seed": result.seed, **result.facts}
    with atomic_path(result_path(folder, result.arm, result.seed)) as scratch:
        np.savez_compressed(
            scratch,
            allow_pickle=False,
            facts=np.array(json.dumps(facts)),
            examples=result.examples,
            **result.val.to_arrays("val"),
            **result.inner.to_arrays("inner"),
        )


def read_result(path: Path) -> RunResult:
    """Reads a result.

    Raises:
        UserError: If the file was not written by this version.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            facts = json.loads(str(arrays["facts"]))
            if facts.pop("format") != FORMAT:
                raise KeyError("format")
            return RunResult(
                facts.pop("arm"),
                facts.pop("seed"),
                TileConfusions.from_arrays(arrays, "val"),
                TileConfusions.from_arrays(arrays, "inner"),
                arrays["examples"],
                facts,
            )
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        raise UserError(
            f"{path} is not a result of this version's trial. Remove it, and run trial again."
        ) from None


def read_results(folder: Path) -> list[RunResult]:
    """All results of a trial's folder, in the order of arm and seed."""
    return [read_result(path) for path in sorted(folder.glob("results/*/seed_*.npz"))]
