"""The quick evaluation of a generator during training: a few figures in a few seconds."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.data.palette import Palette
from geoseg_gan.evaluation.agreement import (
    agreement,
    diversity,
    diversity_rows,
    noise_distances,
    predicted_confusion,
)
from geoseg_gan.evaluation.artefacts import power, spectrum_gap, texture
from geoseg_gan.evaluation.fidelity import Extractor, compare, coverage, memorisation
from geoseg_gan.evaluation.images import collect, generate_like
from geoseg_gan.models.checkpoints import RunFacts
from geoseg_gan.models.loaded import LoadedGenerator
from geoseg_gan.models.pretrained.features import Lite0Features
from geoseg_gan.models.registry import Generator
from geoseg_gan.synthesis.recognizer import Recognizer
from geoseg_gan.utils.pictures import evenly_spaced

_VARIANTS = 2


class QuickEvaluation:
    """Measures a generator on held-out real tiles, the same ones at every call.

    Args:
        held_out: Windows of real tiles that training does not use.
        fitted: Windows of the training tiles, to detect copies.
        palette: The classes.
        scaling: From stored values to [-1, 1].
        samples: How many windows of both are taken, at most.
        device: Where the generator is.
        recognizer: The segmenter for the figure "agreement"; None to leave it out.
    """

    def __init__(
        self,
        held_out: WindowDataset,
        fitted: WindowDataset,
        palette: Palette,
        scaling: ImageScaling,
        *,
        samples: int,
        device: torch.device,
        recognizer: Recognizer | None,
    ) -> None:
        """Reads the windows, and measures the real ones once."""
        self.facts = RunFacts({}, palette, scaling)
        self.device = device
        self.recognizer = recognizer
        self.real = collect(held_out, evenly_spaced(len(held_out), samples))
        network = Lite0Features(len(scaling.low)).to(device)
        self.extract = Extractor(network, scaling, device)
        self.network = network
        self.features = self.extract(self.real)
        self.fitted = self.extract(collect(fitted, evenly_spaced(len(fitted), samples)))
        self.power = power(self.real, scaling)

    def __call__(self, network: Generator) -> dict[str, float]:
        """Figures of a generator in evaluation mode, each as `evaluate` measures it.

        Returns:
            "kid", "fid", "precision", "recall"; "high_frequency" and "checkerboard" of the
            spectrum; "repetition", generated minus real; "diversity" by layers; "copying", the mean
            distance to the nearest training window over that of real held-out ones, below 1 where
            training images are memorised; with a segmenter, "agreement" (mIoU). NaN where a
            figure is undefined.
        """
        generator = LoadedGenerator(network, self.facts, 0, "")
        scaling, names = self.facts.scaling, self.facts.palette.names
        fake = generate_like(generator, self.real, 0, self.device)
        features = self.extract(fake)
        fidelity = compare(self.features, features)
        gap = spectrum_gap(self.power, power(fake, scaling))
        repeated = texture(self.real, fake, scaling, names)
        near = memorisation(self.fitted, features, self.features)
        rows = diversity_rows(len(self.real))
        distances = noise_distances(
            self.network,
            generator,
            [self.real.labels[row] for row in rows],
            rows,
            variants=_VARIANTS,
            seed=0,
            device=self.device,
        )
        figures = {
            "kid": fidelity["kid"],
            "fid": fidelity["fid"],
            **coverage(self.features, features),
            "high_frequency": gap.high,
            "checkerboard": gap.checkerboard,
            "repetition": _mean(repeated["generated"]) - _mean(repeated["real"]),
            "diversity": float(diversity(distances, generator)["layers"]),
            "copying": _mean(near["generated"]) / _mean(near["held_out"]),
        }
        if self.recognizer is not None:
            total = predicted_confusion(self.recognizer, fake, len(names))
            figures["agreement"] = agreement(total, names)["miou"]
        return figures


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
