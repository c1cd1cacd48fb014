"""Few figures in a few seconds: what a training run watches."""

import torch

from geoseg_gan.checkpoints import LoadedGenerator, RunFacts
from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.dataset import WindowDataset
from geoseg_gan.data.palette import Palette
from geoseg_gan.evaluation.artefacts import power
from geoseg_gan.evaluation.fidelity import Extractor
from geoseg_gan.evaluation.images import collect, painted_like, spread
from geoseg_gan.evaluation.obedience import agreement, diversity
from geoseg_gan.metrics.fidelity import kid
from geoseg_gan.metrics.spectrum import spectrum_gap
from geoseg_gan.models.features import Lite0Features
from geoseg_gan.models.registry import Generator
from geoseg_gan.synthesis.recognizer import Recognizer

_VARIANTS = 2


class QuickEvaluation:
    """Measures a generator on held-out real tiles, the same ones at every call.

    Args:
        dataset: Windows of tiles that it is not trained on.
        palette: The classes.
        scaling: From stored values to [-1, 1].
        samples: How many windows are painted, at most.
        device: Where the generator is.
        recognizer: The segmenter for the figure "agreement"; None to leave it out.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        palette: Palette,
        scaling: ImageScaling,
        *,
        samples: int,
        device: torch.device,
        recognizer: Recognizer | None,
    ) -> None:
        """Reads the windows, and works out what is known of them once."""
        self.facts = RunFacts({}, palette, scaling)
        self.device = device
        self.recognizer = recognizer
        self.real = collect(dataset, spread(len(dataset), samples))
        network = Lite0Features(len(scaling.low)).to(device)
        self.extract = Extractor(network, scaling, device)
        self.network = network
        self.features = self.extract(self.real)
        self.power = power(self.real, scaling)

    def __call__(self, network: Generator) -> dict[str, float]:
        """Figures of a generator in evaluation mode, each as `evaluate` measures it.

        Returns:
            "kid", "high_frequency" and "checkerboard" (of the spectrum), "diversity" (by layers)
            and, with a segmenter, "agreement" (mIoU).
        """
        generator = LoadedGenerator(network, self.facts, 0, "")
        fake = painted_like(generator, self.real, 0, self.device)
        gap = spectrum_gap(self.power, power(fake, self.facts.scaling))
        varied = diversity(
            self.network, generator, self.real, variants=_VARIANTS, seed=0, device=self.device
        )
        figures = {
            "kid": kid(self.features, self.extract(fake)),
            "high_frequency": gap.high,
            "checkerboard": gap.checkerboard,
            "diversity": float(varied["layers"]),
        }
        if self.recognizer is not None:
            agreed = agreement(self.recognizer, fake, self.facts.palette.names)
            figures["agreement"] = agreed["miou"]
        return figures
