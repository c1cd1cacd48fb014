"""Images without masks, which a segmenter labels for a training that mixes them in."""

import shutil
from dataclasses import replace
from pathlib import Path

from geoseg_gan.config import compose
from geoseg_gan.data.datamodule import PairDataModule
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.synthesis.generate import MOST, generate
from geoseg_gan.synthesis.pseudo_labels import check_images, check_labels
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.training.settings import TrainingConfig
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import check_apart


def check_unlabelled(config: TrainingConfig) -> None:
    """Refuses, with a UserError, settings by which no images could be labelled."""
    folder = Path(config.unlabelled or "")
    if config.data.format == "stream":
        raise UserError(
            f"unlabelled={folder}: how sure labels must be is chosen on held-out tiles of a "
            "folder. Set data.format=folder, or label with scripts/generate.py confidence=0.7."
        )
    check_labels(mask_reader(config.data), config.data.fit)
    check_apart("out_dir", Path(config.out_dir), folder, [""])


def check_unlabelled_images(config: TrainingConfig, data: PairDataModule) -> None:
    """Refuses, with a UserError, images that could not be labelled, or are validated on.

    `data` are the labelled pairs; a warning says which images they hold out.
    """
    index, inner = data.train_index, data.inner_dataset
    kind = index.bands, index.dtype.name
    held_out = inner.source.pairs if inner else []
    folder = Path(config.unlabelled or "")
    check_images(folder, data.root, config.image_size, *kind, held_out)


def label(config: TrainingConfig, segmenter: Path, labelled: Path, side: int | None = None) -> None:
    """Labels the unlabelled images, goes on with it, or does nothing where it is done.

    Args:
        config: The training that they are for.
        segmenter: Checkpoint of the segmenter.
        labelled: The folder of pairs.
        side: Of the windows in pixels; None for one that suits the segmenter.

    Raises:
        UserError: If the segmenter is sure of nothing.
    """
    settings = replace(
        compose(GenerateConfig, ["source=unlabelled"]),
        segmenter_ckpt=str(segmenter),
        data_root=config.data_root,
        unlabelled=config.unlabelled,
        save_dir=str(labelled),
        image_size=side,
        num_samples=MOST,
        seed=config.seed,
        devices=config.devices,
        trainer=config.trainer,
    )
    found = generate(settings)
    if found and not found["pairs"]:
        shutil.rmtree(labelled)  # holds no pairs, and stands in the way of the next attempt
        raise UserError(
            f"{segmenter} is not sure enough of anything in {config.unlabelled}. Train it longer, "
            "by more epochs and resume=true, or look at how its predictions on held-out tiles "
            "differ from their masks."
        )
