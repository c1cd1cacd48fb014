"""The stored result of a run: what the statistics of a trial need."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.utils.confusion import TileConfusions
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path
from geoseg_gan.utils.reading import Array, Number, check_content, parse_json, read_arrays, whole

FORMAT = 1

PAIR_FACTS = {
    "generated": whole(),
    "kept": whole(),
    "tau": Number(),
    "pairs": str,
    "gan_seed": whole(),
    "synthesis_seconds": Number(0),
    "generator_seconds": {"*": Number(0)},
}
"""What `RunResult.facts` holds of the pairs that an arm mixes in, as a shape of `utils.reading`."""

_COUNTS = [whole(0, 2**60)]
_SUPPORT = {"pixels": _COUNTS, "tiles": _COUNTS, "groups": _COUNTS, "total_tiles": whole()}
_ANY = {"format": whole(), "arm": str, "seed": whole(), "seconds": Number(0), "support": _SUPPORT}
_FACTS = (_ANY | dict.fromkeys(("generated", "kept", "tau")), _ANY | PAIR_FACTS)
_ARRAYS = {"facts": Array("U", ()), "examples": Array("u", ("examples", "side", "side"))}


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
        UserError: If the file was not written by this version, or is that of another arm or seed.
    """
    advice = "Remove it, and run trial again."
    shape = TileConfusions.shape("val") | TileConfusions.shape("inner") | _ARRAYS
    arrays = read_arrays(path, shape, advice)
    try:
        facts = parse_json(str(arrays["facts"]))
    except ValueError as error:
        raise UserError(f"{path} has 'facts' that cannot be read ({error}). {advice}") from None
    check_content(path, facts, _FACTS, advice)
    if facts.pop("format") != FORMAT:
        raise UserError(f"{path} is not a result of this version's trial. {advice}")
    arm, seed = facts.pop("arm"), facts.pop("seed")
    if path != result_path(path.parents[2], arm, seed):
        raise UserError(f"{path} holds the result of {arm}, seed {seed}. {advice}")
    val, inner = (TileConfusions.from_arrays(arrays, name) for name in ("val", "inner"))
    return RunResult(arm, seed, val, inner, arrays["examples"], facts)


def read_results(folder: Path) -> list[RunResult]:
    """All results of a trial's folder, in the order of arm and seed."""
    return [read_result(path) for path in sorted(folder.glob("results/*/seed_*.npz"))]
