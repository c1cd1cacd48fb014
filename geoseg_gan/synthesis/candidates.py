"""Candidate masks: training masks under random geometry, with regions of others in them."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.exemplars import Exemplars
from geoseg_gan.data.images import resize_image, resize_label
from geoseg_gan.data.jitter import (
    FloatArray,
    Warp,
    Window,
    draw_warp,
    draw_window,
    sample_image,
    sample_label,
)
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import Pair
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.settings import Fit, JitterSettings
from geoseg_gan.data.styles import Style, Styles
from geoseg_gan.data.transplant import Transplant, Transplanter, visible_box
from geoseg_gan.models.registry import Generator
from geoseg_gan.synthesis.compose import Composition, draw_generated
from geoseg_gan.synthesis.settings import ComposeSettings
from geoseg_gan.utils.errors import UserError

_ATTEMPTS = 32  # draws of geometry until a mask shows every required class


@dataclass(frozen=True)
class Candidate:
    """A new mask and how it came about.

    Attributes:
        index: Its number in the run; with the run's seed it fixes everything else, its noise too.
        mask_index: Number of its mask, which all variants of the mask share.
        variant: Which of the images of that mask it is, from 0 on.
        source: Stem of the training mask.
        warp: The geometry that was drawn.
        window: Its place in the warped mask, in pixels.
        label: Shape (S, S), uint8.
        graft: What was transplanted into the mask before it was warped.
        lacks: Names of required classes that it does not show; such a candidate is dropped.
        composition: Where its image is generated; None for everywhere.
        style: Style of its classes; None where that is left to the generator.
        exemplar: What is shown in place of a generated image, shape (H, W, K), in the stored
            dtype; None where a generator makes it.
    """

    index: int
    mask_index: int
    variant: int
    source: str
    warp: Warp
    window: Window
    label: npt.NDArray[np.uint8]
    graft: Transplant | None = None
    lacks: tuple[str, ...] = ()
    composition: Composition | None = None
    style: Style | None = None
    exemplar: npt.NDArray[Any] | None = None

    @property
    def unfit(self) -> str | None:
        """Why it is dropped without an image; None where it gets one."""
        if self.lacks:
            return f"shows no {' and no '.join(self.lacks)}"
        if self.composition is not None and self.composition.real is None:
            return "nothing of it would be generated"
        return None

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entries: all but the pixels and what is lacking."""
        composed = {} if self.composition is None else {"generated_share": self.composition.share}
        steps = {} if self.graft is None else {"transplant": self.graft.to_dict()}
        return {
            "index": self.index,
            "mask_index": self.mask_index,
            "variant": self.variant,
            "source": self.source,
            "jitter": steps | self.warp.to_dict(),
            "window": list(self.window),
        } | composed


@dataclass(frozen=True, eq=False)
class UnlabelledWindow:
    """A window of an image, in place of a candidate: its mask is found, not drawn.

    Attributes:
        index: Its number.
        source: Name of the image.
        window: Its place in the image.
    """

    index: int
    source: str
    window: Window

    def to_dict(self) -> dict[str, Any]:
        """The manifest's entries."""
        return {"index": self.index, "source": self.source, "window": list(self.window)}


class _View(NamedTuple):
    """A mask under a draw of the geometry; `maps` tell where its pixels come from."""

    warp: Warp
    window: Window
    maps: tuple[FloatArray, FloatArray]
    graft: Transplant | None
    label: npt.NDArray[np.uint8]


@dataclass(kw_only=True)
class CandidateMasks:
    """Candidates by number: mask, geometry and place are drawn from (seed, mask number) alone.

    With K variants, candidate i is variant i % K of mask i // K; with one, both numbers are i.
    The whole mask is warped before it is cropped, so that a crop's border shows real neighbours.

    Args:
        pairs: Whose masks are drawn from.
        reader: How masks become label maps.
        image_size: Side of the candidates in pixels.
        fit: "crop" takes a window of the mask, "resize" shows it whole.
        jitter: The geometry.
        seed: The run's seed.
        sampling: Probability of every mask, shape (N,); None where all have the same.
        required: IDs of classes that every candidate must show: only masks that hold all of them
            are drawn, and geometry is drawn again, up to 32 times, until all are in sight.
        pixels: Pixels of every class and, last, of ignore in each mask, shape (N, C + 1), int64;
            only `required` needs them.
        transplanter: Pastes regions of other masks; None for none.
        variants: How many candidates in a row show the same mask.
        compose: Which part of the images is generated.
        styles: Styles that the images take on, drawn for each by itself; None for none.
        exemplars: What images are laid together from; None where a generator makes them.

    Raises:
        UserError: If no mask that may be drawn holds all required classes.
    """

    pairs: Sequence[Pair]
    reader: MaskReader
    image_size: int
    fit: Fit
    jitter: JitterSettings
    compose: ComposeSettings
    seed: int
    sampling: InitVar[npt.NDArray[np.float64] | None] = None
    required: Sequence[int] = ()
    pixels: InitVar[npt.NDArray[np.int64] | None] = None
    transplanter: Transplanter | None = None
    variants: int = 1
    styles: Styles | None = None
    exemplars: Exemplars | None = None

    def __post_init__(
        self,
        sampling: npt.NDArray[np.float64] | None,
        pixels: npt.NDArray[np.int64] | None,
    ) -> None:
        """Chooses the masks; nothing is read yet."""
        self._last: Candidate | None = None  # its other variants need no drawing
        rows = np.arange(len(self.pairs))
        if self.required:
            assert pixels is not None, "required classes are looked up in the masks' pixels"
            rows = np.flatnonzero((pixels[:, list(self.required)] > 0).all(1))
        if sampling is not None:
            rows = rows[sampling[rows] > 0]
        if not len(rows):
            raise UserError(
                f"require_classes: no training mask that may be drawn holds "
                f"{' and '.join(self._names(self.required))}. Require fewer classes."
            )
        self._rows = rows
        self._ends = None if sampling is None else sampling[rows].cumsum() / sampling[rows].sum()

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """The probability with which each of `pairs` is drawn, shape (N,), summing to 1."""
        weights = np.zeros(len(self.pairs))
        if self._ends is None:
            weights[self._rows] = 1 / len(self._rows)
        else:
            weights[self._rows] = np.diff(self._ends, prepend=0.0)
        return weights

    def __getitem__(self, index: int) -> Candidate:
        """The candidate of a number from 0 on."""
        mask_index, variant = divmod(index, self.variants)
        last = self._last
        if last is None or last.mask_index != mask_index:
            last = self._last = self._draw(mask_index)
        style = exemplar = None
        # The one after the mask's number must not be 0: it would start the mask's own draws.
        rng = np.random.default_rng((self.seed, mask_index, variant + 1))
        if self.styles is not None:
            style = self.styles.draw(rng, last.source)
        if self.exemplars is not None and not last.unfit:
            exemplar = self.exemplars.compose(rng, last.label, last.source)
        return replace(last, index=index, variant=variant, style=style, exemplar=exemplar)

    def _draw(self, mask_index: int) -> Candidate:
        """The first candidate that shows a mask."""
        rng = np.random.default_rng((self.seed, mask_index))
        pair = self.pairs[self._draw_row(rng)]
        image = None
        if self.compose.generate == "all":
            whole, _ = self.reader.read(pair.mask)
        else:  # where the real image has no data, there is nothing to show
            image, whole, _ = self.reader.read_pair(pair.image, pair.mask)
        for _ in range(_ATTEMPTS):
            view = self._draw_view(whole, rng)
            missing = [c for c in self.required if not (view.label == c).any()]
            if not missing:
                break
        composition = None if image is None or missing else self._compose(image, view, rng)
        label = view.label
        if self.exemplars is not None:  # of classes that they lack there is nothing to be shown
            known = self.exemplars.known(label)
            label = known if composition is None else np.where(composition.generated, known, label)
        return Candidate(
            index=mask_index * self.variants,
            mask_index=mask_index,
            variant=0,
            source=pair.stem,
            warp=view.warp,
            window=view.window,
            label=label,
            graft=view.graft,
            lacks=tuple(self._names(missing)),
            composition=composition,
        )

    def _compose(
        self, image: npt.NDArray[Any], view: _View, rng: np.random.Generator
    ) -> Composition:
        grafted = np.full(image.shape[:2], IGNORE, np.uint8)
        if view.graft is not None:
            grafted = view.graft.apply(grafted)
        shown = self._shown(grafted, view) != IGNORE
        generated = draw_generated(self.compose, rng, view.label, shown)
        if not generated.any() and self.compose.generate != "none":
            return Composition(generated, None)
        if self.fit == "resize":
            image = resize_image(image, self.image_size)
        return Composition(generated, sample_image(image, view.maps))

    def _shown(self, label: npt.NDArray[np.uint8], view: _View) -> npt.NDArray[np.uint8]:
        if self.fit == "resize":
            label = resize_label(label, self.image_size)
        return sample_label(label, view.maps)

    def _draw_row(self, rng: np.random.Generator) -> int:
        if self._ends is None:
            return int(self._rows[rng.integers(len(self._rows))])
        return int(self._rows[self._ends.searchsorted(rng.random(), side="right")])

    def _draw_view(self, label: npt.NDArray[np.uint8], rng: np.random.Generator) -> _View:
        resized = self.fit == "resize"
        height, width = (self.image_size,) * 2 if resized else label.shape
        warp = draw_warp(self.jitter, rng)
        window = draw_window(*warp.shape(height, width), self.image_size, rng)
        maps = warp.source_map(height, width, window)
        graft = None
        if self.transplanter is not None:
            graft = self.transplanter.draw(
                rng, label, None if resized else visible_box(maps, label)
            )
            if graft is not None:
                label = graft.apply(label)
        if resized:
            label = resize_label(label, self.image_size)
        return _View(warp, window, maps, graft, sample_label(label, maps))

    def _names(self, classes: Sequence[int]) -> list[str]:
        return [self.reader.palette.names[c] for c in classes]


def check_variants(variants: int, generator: Generator) -> None:
    """Refuses several images of a mask from a generator that would make them all alike.

    Raises:
        UserError: If the generator takes no noise.
    """
    if variants > 1 and generator.noise.channels == 0:
        raise UserError(
            f"variants={variants}: the generator takes no noise, so all images of a mask would be "
            "the same. Use variants=1, or train one with model.generator.style_channels, "
            "region_channels or texture_octaves above 0."
        )
