"""What the page generates: masks of tiles or drawn ones, their images, and how these are read."""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from geoseg_gan.data.image_files import MASK_SUFFIXES
from geoseg_gan.data.images import resize_label, write_image
from geoseg_gan.data.masks import stored_mask_reader
from geoseg_gan.data.pairs import DataError, Pair
from geoseg_gan.data.palette import IGNORE, Palette
from geoseg_gan.data.split import split_pairs
from geoseg_gan.models.loaded import LoadedGenerator, load_generator
from geoseg_gan.studio.settings import StudioConfig
from geoseg_gan.synthesis.generate_images import generate_images
from geoseg_gan.synthesis.inputs import check_pair_size
from geoseg_gan.synthesis.recognizer import class_ids_on, load_recognizer
from geoseg_gan.synthesis.writer import PairFiles
from geoseg_gan.utils.confusion import class_iou, confusion_matrix, mean_iou
from geoseg_gan.utils.errors import UserError

Label = npt.NDArray[np.uint8]

_OPAQUE = 128  # alpha from which a pixel counts as drawn on
_EXACT = 3  # how far a channel of a brush's colour may be off after its way through the browser


@dataclass(frozen=True)
class Reading:
    """How a segmenter reads a generated image.

    Attributes:
        label: The likeliest class of every pixel, shape (H, W), uint8; 255 where the mask is.
        iou: Intersection over union of every class, shape (C,); NaN where there is none.
        agreement: Their mean over the classes of the mask (mIoU); NaN where all of it is ignored.
    """

    label: Label
    iou: npt.NDArray[np.float64]
    agreement: float


@dataclass(frozen=True)
class Generated:
    """An image of a mask.

    Attributes:
        label: The mask, shape (S, S), uint8.
        image: Shape (S, S, K), in the stored dtype of the training images.
        picture: The image as RGB, shape (S, S, 3), uint8.
        reading: How the segmenter reads it; None without one.
    """

    label: Label
    image: npt.NDArray[Any]
    picture: npt.NDArray[np.uint8]
    reading: Reading | None


class Workbench:
    """The generators of a run, tiles to take masks from, and a segmenter.

    Attributes:
        generators: Names of the run's generators, the one that was asked for first.
        reader: Reads and writes masks as in training.
        size: Side S of masks and images in pixels.
        stems: Names of the training tiles; none where their folder is not on this machine.
        takes_noise: Whether a mask has more than one image.
    """

    def __init__(self, config: StudioConfig) -> None:
        """Loads the networks and lists the tiles.

        Raises:
            UserError: If a checkpoint or the data are not as they must be.
        """
        path = Path(config.gen_ckpt or "")
        self._device = config.trainer.device()
        self._paths = {other.name: other for other in (path, *sorted(path.parent.glob("G_e*.pt")))}
        self.generators = list(self._paths)
        self._load = lru_cache(2)(lambda name: load_generator(self._paths[name], self._device))
        loaded = self._load(path.name)
        self._facts, trained = loaded.facts, loaded.facts.config
        palette, data = loaded.facts.palette, trained["data"]
        self.takes_noise = loaded.network.noise.channels > 0
        self.reader = stored_mask_reader(palette, data)
        self.size = config.image_size or trained["image_size"]
        self._fit = data["fit"]
        check_pair_size(self.size, loaded.network.stride, trained["image_size"], self._fit)
        self._pairs = _training_pairs(config.data_root, trained)
        self.stems = list(self._pairs)
        self._recognizer = None
        if config.segmenter_ckpt is not None:
            self._recognizer = load_recognizer(
                Path(config.segmenter_ckpt),
                palette,
                loaded.facts.scaling,
                self.size,
                self._device,
                config.class_map,
                config.onnx,
            )

    @property
    def palette(self) -> Palette:
        """The classes."""
        return self.reader.palette

    @property
    def reads(self) -> bool:
        """Whether there is a segmenter."""
        return self._recognizer is not None

    def mask_of_tile(self, stem: str) -> Label:
        """The mask of a training tile, shape (S, S), uint8.

        Raises:
            UserError: If it cannot be read or is too small.
        """
        return self._fitted(self.reader.read(self._pairs[stem].mask)[0], stem)

    def mask_of_file(self, path: Path) -> Label:
        """The mask in a user's file, shape (S, S), uint8.

        Raises:
            UserError: If it cannot be read, holds an unknown colour or is too small.
        """
        try:
            if path.suffix.lower() not in MASK_SUFFIXES:
                raise UserError(f"{path} is no mask: give one of {', '.join(MASK_SUFFIXES)}.")
            return self._fitted(self.reader.read(path)[0], path.name)
        except UserError as error:  # the folder is none that the user knows
            raise UserError(str(error).replace(str(path), path.name)) from None

    def blank(self, kind: int) -> Label:
        """A mask of one class, shape (S, S), uint8."""
        return np.full((self.size, self.size), kind, np.uint8)

    def generate(self, name: str, label: Label, seed: int) -> Generated:
        """Generates the image of a mask, and has the segmenter read it.

        Args:
            name: Which of `generators`.
            label: The mask, shape (S, S), uint8.
            seed: Fixes the noise.

        Raises:
            UserError: If the generator cannot be read, or is of another run.
        """
        generator: LoadedGenerator = self._load(name)
        facts = generator.facts
        if (facts.palette, facts.scaling) != (self._facts.palette, self._facts.scaling):
            raise UserError(f"{name} was trained on other data than {self.generators[0]}.")
        [image] = generate_images(generator, [label], seed=seed, indices=[0], device=self._device)
        return Generated(label, image, facts.scaling.to_rgb(image), self._read(label, image))

    def write_pair(self, folder: Path, index: int, made: Generated) -> tuple[Path, Path]:
        """Writes image and mask into a folder, as `generate` does; returns their paths.

        Raises:
            UserError: If the mask cannot be written.
        """
        files = PairFiles(folder, "pairs", self.reader, self._facts.scaling)
        image_path, mask_path = files.paths(index)
        write_image(image_path, made.image)
        self.reader.write(mask_path, made.label)
        return image_path, mask_path

    def _read(self, label: Label, image: npt.NDArray[Any]) -> Reading | None:
        if self._recognizer is None:
            return None
        found = self._recognizer.logits(image).argmax(0)
        counts = confusion_matrix(class_ids_on(label, found), found, self.palette.num_classes)
        shown = np.where(label == IGNORE, IGNORE, found.numpy()).astype(np.uint8)
        return Reading(shown, class_iou(counts), mean_iou(counts))

    def _fitted(self, label: Label, name: str) -> Label:
        """The whole mask where training resizes tiles, else its middle; shape (S, S)."""
        if self._fit == "resize":
            return resize_label(label, self.size)
        height, width = label.shape
        if min(height, width) < self.size:
            raise UserError(
                f"{name} is {width}x{height}, smaller than the {self.size}x{self.size} px of an "
                "image. Take a larger one, or start the studio with a smaller image_size."
            )
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return label[top : top + self.size, left : left + self.size].copy()


def _training_pairs(data_root: str | None, trained: dict[str, Any]) -> dict[str, Pair]:
    """The tiles that the generator was trained on, by stem."""
    try:
        pairs, _ = split_pairs(Path(data_root or trained["data_root"]), trained)
    except DataError as error:
        if data_root is not None:
            raise
        warnings.warn(f"masks can only be drawn or loaded, since {error}", stacklevel=3)
        return {}
    return {pair.stem: pair for pair in pairs}


def drawn_mask(below: Label, layer: npt.NDArray[np.uint8], palette: Palette) -> Label:
    """The mask that a user has drawn over another.

    Brushes have soft edges, whose mixed colours can be those of a third class: such pixels take
    the class of the nearest pixel that is of one colour.

    Args:
        below: The mask drawn over, shape (H, W), uint8.
        layer: What was drawn, in brushes of the palette's colours, shape (zH, zW, 4), RGBA, uint8,
            where z is a whole number of 1 or more.
        palette: The classes.

    Returns:
        Shape (H, W), uint8.

    Raises:
        UserError: If the layer is of another shape.
    """
    zoom = layer.shape[0] // below.shape[0]
    if layer.shape != (zoom * below.shape[0], zoom * below.shape[1], 4) or not zoom:
        raise UserError("the drawing has another size than the mask. Load the mask again.")
    drawn = layer[..., 3] >= _OPAQUE
    known = [(label, c.color) for label, c in enumerate(palette.classes)]
    known += [(IGNORE, list(color)) for color in palette.ignore]
    label = enlarged(below, zoom)
    pure = ~drawn
    for value, color in known:
        near = np.abs(layer[..., :3].astype(np.int16) - color).max(-1) <= _EXACT
        label[drawn & near] = value
        pure |= drawn & near
    if not pure.all() and pure.any():
        rows, columns = ndimage.distance_transform_edt(
            ~pure, return_distances=False, return_indices=True
        )
        label = label[rows, columns]
    return label[zoom // 2 :: zoom, zoom // 2 :: zoom].copy()


def enlarged(picture: npt.NDArray[np.uint8], zoom: int) -> npt.NDArray[np.uint8]:
    """A picture (H, W) or (H, W, 3) of which every pixel becomes a square of `zoom` pixels."""
    return picture.repeat(zoom, 0).repeat(zoom, 1)
