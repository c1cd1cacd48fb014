"""Images without masks, which a segmenter labels for a training that mixes them in."""

from dataclasses import replace
from pathlib import Path

from geoseg_gan.config import compose
from geoseg_gan.data.masks import mask_reader
from geoseg_gan.data.pairs import find_pairs, list_images
from geoseg_gan.data.split import refuse_validated
from geoseg_gan.synthesis.generate import MOST, generate
from geoseg_gan.synthesis.pseudo_labels import check_images, check_labels
from geoseg_gan.synthesis.settings import GenerateConfig
from geoseg_gan.training.settings import TrainingConfig
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import check_apart


def check_unlabelled(config: TrainingConfig) -> None:
    """Refuses images that could not be labelled, before anything slow starts.

    Raises:
        UserError: Naming the folder and what to do.
    """
    folder = Path(config.unlabelled or "")
    if config.data.format == "stream":
        raise UserError(
            f"unlabelled={folder}: how sure labels must be is chosen on held-out tiles of a "
            "folder. Set data.format=folder, or label with scripts/generate.py confidence=0.7."
        )
    check_labels(mask_reader(config.data), config.data.fit)
    check_images(folder, config.image_size)
    check_apart("out_dir", Path(config.out_dir), folder, [""])


def refuse_validated_images(config: TrainingConfig) -> None:
    """Refuses unlabelled images that are in the validation split.

    Raises:
        UserError: Naming one.
    """
    root, folder = Path(config.data_root), Path(config.unlabelled or "")
    if (root / "val").is_dir():
        val = find_pairs(root, "val", config.data.group_regex)
        refuse_validated(list_images(folder), val)


def label(config: TrainingConfig, segmenter: Path, labelled: Path) -> None:
    """Labels the unlabelled images, goes on with it, or does nothing where it is done.

    Args:
        config: The training that they are for.
        segmenter: Checkpoint of the segmenter.
        labelled: The folder of pairs.

    Raises:
        UserError: If the segmenter is sure of nothing.
    """
    settings = replace(
        compose(GenerateConfig, ["source=unlabelled"]),
        segmenter_ckpt=str(segmenter),
        data_root=config.data_root,
        unlabelled=config.unlabelled,
        save_dir=str(labelled),
        num_samples=MOST,
        seed=config.seed,
        devices=config.devices,
        trainer=config.trainer,
    )
    found = generate(settings)
    if found and not found["pairs"]:
        raise UserError(
            f"{segmenter} is not sure enough of anything in {config.unlabelled}. Train it longer, "
            "or look at how its predictions on held-out tiles differ from their masks."
        )
