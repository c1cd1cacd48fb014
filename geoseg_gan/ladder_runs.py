"""The runs of a ladder: what each trains, how it goes on, and how it is judged."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoseg_gan.config import plain, read_yaml
from geoseg_gan.errors import UserError
from geoseg_gan.evaluation.report import RESULT as EVALUATION
from geoseg_gan.files import atomic_path
from geoseg_gan.ladders.processes import Processes, setting
from geoseg_gan.ladders.results import SPLITS, Result, store_result
from geoseg_gan.resume import LAST, flat
from geoseg_gan.schemas import LadderConfig, TrainConfig
from geoseg_gan.sweeps import read_result
from geoseg_gan.train import FREE_ON_RESUME

_LEAST = 0.05  # minutes: a run that was stopped at its very end ends at once


@dataclass(frozen=True)
class LadderRun:
    """A row with a seed.

    Attributes:
        row: The row.
        seed: The seed.
        folder: Where it trains.
        own: What the row changes.
        overrides: All settings of its training, those of the row in place of the common ones.
    """

    row: str
    seed: int
    folder: Path
    own: Sequence[str]
    overrides: Sequence[str]

    @classmethod
    def of(cls, config: LadderConfig, row: str, seed: int) -> "LadderRun":
        """A run of a ladder."""
        folder, own = cls.folder_of(Path(config.out_dir), row, seed), config.ladder[row]
        changed = set(map(_key, own))
        common = [override for override in config.common if _key(override) not in changed]
        places = [f"seed={seed}", setting("out_dir", folder)]
        return cls(row, seed, folder, own, [*common, *own, *places])

    @staticmethod
    def folder_of(out_dir: Path, row: str, seed: int) -> Path:
        """Where a run of a ladder trains."""
        return out_dir / row / f"seed_{seed:03d}"

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.folder.with_suffix(".log")

    @property
    def _last(self) -> Path:
        return self.folder / LAST

    @property
    def _used(self) -> Path:
        """Where the minutes stand that were trained before interruptions."""
        return self.folder.with_suffix(".minutes")

    def __str__(self) -> str:
        """As it is told to people."""
        return f"{self.row} seed {self.seed}"

    def is_trained(self) -> bool:
        """Whether training has ended well."""
        return read_result(self.folder) is not None

    def minutes_used(self) -> float:
        """Minutes that were trained before the last interruption but one."""
        return float(self._used.read_text()) if self._used.is_file() else 0.0

    def going_on(self) -> list[str]:
        """The further settings with which an interrupted training goes on; none for a new one.

        A continued run is given what is left of its time, up to its last finished epoch.
        """
        if self.is_trained() or not self._last.is_file():
            return []
        limit = read_yaml(self.folder / "config.yaml")["max_minutes"]
        if limit is None:
            return ["resume=true"]
        return ["resume=true", f"max_minutes={max(_LEAST, limit - self._minutes()):.3f}"]

    def note_used(self) -> None:
        """Keeps the minutes of a training that is about to go on."""
        if self._used.is_file() and self._used.stat().st_mtime > self._last.stat().st_mtime:
            return  # no epoch has ended since they were noted
        with atomic_path(self._used) as scratch:
            scratch.write_text(f"{self.minutes_used() + self._minutes():.3f}")

    def _minutes(self) -> float:
        """Minutes of the last process, from its start to its last finished epoch."""
        begun = (self.folder / "config.yaml").stat().st_mtime
        return max(0.0, self._last.stat().st_mtime - begun) / 60

    def evaluation(self, split: str) -> Path:
        """Where it is evaluated."""
        return self.folder / f"evaluation_{split}"

    def store(self, out_dir: Path, common: Sequence[str]) -> Result:
        """Writes its result, once it is trained and evaluated."""
        trained, settings = read_result(self.folder), read_yaml(self.folder / "config.yaml")
        assert trained is not None, "only what is trained is stored"
        before = self.minutes_used()
        training = {
            "steps": trained["steps"],
            "images": trained["steps"] * settings["bs"],
            "seconds": round(trained["seconds"] + 60 * before, 1),
            "images_per_second": trained["figures"].get("images_per_second"),
            "resumed": before,
        }
        evaluations = {
            split: json.loads((self.evaluation(split) / EVALUATION).read_text()) for split in SPLITS
        }
        return store_result(
            out_dir,
            self.row,
            self.seed,
            overrides=self.own,
            common=common,
            training=training,
            evaluations=evaluations,
        )


def refuse_other_training(run: LadderRun, settings: TrainConfig) -> None:
    """Refuses a finished training that comes from other settings than the row's.

    Raises:
        UserError: Naming the first setting that differs.
    """
    now = flat(plain(settings))
    stored = flat(read_yaml(run.folder / "config.yaml"))
    free = set(FREE_ON_RESUME) - {"epochs"}
    if not run.minutes_used():
        free -= {"max_minutes"}  # a continued run was given the rest
    for key, value in stored.items():
        # Settings that this version alone knows, or the other alone, say nothing.
        if key in now and key.split(".")[0] not in free and now[key] != value:
            raise UserError(
                f"{run.folder} was trained with {key}={value}, not {now[key]} as this call "
                "says. Correct the settings, or move the folder elsewhere."
            )


def train_rest(run: LadderRun, processes: Processes) -> str | None:
    """Trains a run, or what is missing of it.

    Returns:
        What went wrong, in a line.
    """
    if run.is_trained():
        return None
    going_on = run.going_on()
    if going_on:
        run.note_used()
    limits = set(map(_key, going_on))
    overrides = [override for override in run.overrides if _key(override) not in limits]
    return processes.run("train", [*overrides, *going_on], run.log)


def judge(
    config: LadderConfig, run: LadderRun, processes: Processes, advance: Callable[[], Any]
) -> str | None:
    """Evaluates a trained run on all splits on which it is not evaluated yet.

    Args:
        config: The ladder.
        run: The run.
        processes: What runs commands.
        advance: Called after each split.

    Returns:
        What went wrong, in a line.
    """
    newest = max(run.folder.glob("G_e*.pt"), key=lambda path: (len(path.name), path.name))
    where = [o for o in run.overrides if _key(o).split(".")[0] == "trainer"]
    for split in SPLITS:
        folder = run.evaluation(split)
        if not (folder / EVALUATION).is_file():
            problem = processes.run(
                "evaluate",
                [
                    *where,
                    setting("gen_ckpt", newest),
                    f"split={split}",
                    setting("segmenter_ckpt", config.segmenter_ckpt),
                    f"num_samples={config.num_samples}",
                    "controls=false",  # damaged real images are the same for all rows
                    setting("out_dir", folder),
                ],
                run.log,
            )
            if problem is not None:
                return problem
        advance()
    return None


def _key(override: str) -> str:
    return override.split("=")[0].lstrip("+~")
