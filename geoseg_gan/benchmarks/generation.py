"""Painting: alone, with masks that are sampled and jittered, with saving and with filtering."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from geoseg_gan.checkpoints import LoadedGenerator, RunFacts
from geoseg_gan.data.batch import one_hot_of
from geoseg_gan.data.datamodule import SegmentationDataModule
from geoseg_gan.data.jitter import JitterSettings
from geoseg_gan.data.regions import region_map
from geoseg_gan.models.noise import sample_noise
from geoseg_gan.models.registry import Generator, build_generator
from geoseg_gan.speed import now
from geoseg_gan.synthesis.judge import Judge, paint_and_judge
from geoseg_gan.synthesis.masks import CandidateMasks
from geoseg_gan.synthesis.recognizer import Recognizer
from geoseg_gan.synthesis.writer import PairWriter


class Painting:
    """A generator with random weights, and the masks that it is to paint.

    Args:
        model: The generator's settings, plain types.
        data: Set up.
        jitter: What masks go through.
        recognizer: Judges what is painted, where that is measured.
        bs: Images at once on a GPU.
        pairs: How many are painted each time.
        device: Where.
    """

    def __init__(
        self,
        model: dict[str, Any],
        data: SegmentationDataModule,
        jitter: JitterSettings,
        recognizer: Recognizer,
        *,
        bs: int,
        pairs: int,
        device: torch.device,
    ) -> None:
        """Builds the generator."""
        torch.manual_seed(0)
        network = build_generator(model, data.palette.num_classes, data.train_index.bands)
        network.to(device).eval().requires_grad_(False)
        self.data = data
        self.jitter = jitter
        self.recognizer = recognizer
        self.bs = bs
        self.pairs = pairs
        self.device = device
        facts = RunFacts({}, data.palette, data.scaling())
        self.generator = LoadedGenerator(cast(Generator, network), facts, 0, "")

    def parts(self) -> dict[str, Callable[[], float]]:
        """What is measured, by name: each gives pairs a second."""
        return {
            "forward": self.forward,
            "unsaved": lambda: self.paint(Judge(), save=False),
            "saved": lambda: self.paint(Judge(), save=True),
            "filtered": lambda: self.paint(Judge(self.recognizer, tau=0.0), save=True),
        }

    @torch.inference_mode()
    def forward(self) -> float:
        """The network alone, on one batch that is there already."""
        batch = self.bs if self.device.type == "cuda" else 1
        candidates = self._candidates()
        labels = np.stack([candidates.at(number).label for number in range(batch)])
        regions = torch.from_numpy(np.stack([region_map(label) for label in labels]))
        network = self.generator.network
        noise = sample_noise(network.noise, 0, range(batch), regions).to(self.device)
        shown = torch.from_numpy(labels).to(self.device)
        one_hot = one_hot_of(shown, self.data.palette.num_classes)
        network(one_hot, noise)
        rounds = -(-self.pairs // batch)
        started = now(self.device)
        for _ in range(rounds):
            network(one_hot, noise)
        return rounds * batch / (now(self.device) - started)

    def paint(self, judge: Judge, save: bool) -> float:
        """All that generate does for a pair, the start of its workers left out."""
        with tempfile.TemporaryDirectory() as folder:
            writer = PairWriter(
                Path(folder), "pairs", self.data.reader, self.data.scaling(), lambda line: None
            )
            painted = paint_and_judge(
                self.generator,
                self._candidates(),
                self._batches(),
                judge,
                num_workers=1,
                device=self.device,
            )
            with writer:
                next(painted)
                started = now(self.device)
                for candidate, image, verdict in painted:
                    if save:
                        writer.add(candidate, image, verdict)
            return (self.pairs - 1) / (now(self.device) - started)

    def _batches(self) -> Sequence[list[int]]:
        numbers = range(self.pairs)
        return [list(numbers[first : first + self.bs]) for first in numbers[:: self.bs]]

    def _candidates(self) -> CandidateMasks:
        return CandidateMasks(
            self.data.train_index.pairs,
            self.data.reader,
            image_size=self.data.image_size,
            fit=self.data.fit,
            jitter=self.jitter,
            seed=0,
            start=0,
            stop=self.pairs,
        )
