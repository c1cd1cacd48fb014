"""The generate command: from a generator and training masks to new image-mask pairs."""

import json
from pathlib import Path
from typing import Any, Protocol, cast, get_args

import numpy.typing as npt
import torch
from rich.progress import track
from torch.utils.data import DataLoader

from geoseg_gan.checkpoints import LoadedGenerator, load_generator
from geoseg_gan.config import GenerateConfig, command, plain
from geoseg_gan.data.images import MaskReader, read_image
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.scan import check_sizes, scan
from geoseg_gan.errors import UserError, check_choice, plural
from geoseg_gan.files import write_json
from geoseg_gan.pictures import beside, write_picture
from geoseg_gan.synthesis.masks import Candidate, CandidateMasks
from geoseg_gan.synthesis.paint import paint
from geoseg_gan.synthesis.writer import MANIFEST, Layout, PairWriter, read_manifest

FACTS = "generation.json"
SHEET = "contact_sheet.png"
_SHOWN = 16
_FREE_TO_CHANGE = ("save_dir", "gen_ckpt", "num_samples", "bs", "num_workers", "trainer")


def generate(config: GenerateConfig) -> dict[str, float]:
    """Samples training masks, jitters and paints them, and saves the pairs.

    The same seed gives the same pairs whatever the batch size and the number of workers; calling
    again goes on where an interrupted call stopped.

    Args:
        config: Which generator, how many pairs, and where to.

    Returns:
        How many pairs the folder holds, as "pairs".

    Raises:
        UserError: If configuration, checkpoint, data or folder are not as they must be.
    """
    check(config)
    device = config.trainer.device()
    generator = load_generator(Path(config.gen_ckpt), device)
    trained = generator.facts.config
    root = Path(config.data_root or trained["data_root"])
    reader = MaskReader(
        generator.facts.palette, trained["data"]["mask_format"], trained["data"]["unknown"]
    )
    pairs = find_pairs(root, "train", trained["data"]["group_regex"])
    index = scan(pairs, reader)
    if trained["data"]["fit"] == "crop":
        check_sizes(index, trained["image_size"])
    folder = Path(config.save_dir)
    done = _open_folder(folder, config, generator, root, len(pairs))
    candidates = CandidateMasks(
        pairs,
        reader,
        image_size=trained["image_size"],
        fit=trained["data"]["fit"],
        jitter=config.jitter,
        seed=config.seed,
        start=done,
        stop=config.num_samples,
    )
    _say_start(config, generator, root, len(pairs), done)
    layout = cast(Layout, config.layout)
    with PairWriter(folder, layout, reader, generator.facts.scaling) as writer:
        paint_all(generator, candidates, writer, config, device)
    total = len(read_manifest(folder))
    _write_contact_sheet(writer, total)
    print(f"Generated {plural(total, 'pair')} in {folder}; see {folder / SHEET}")
    return {"pairs": float(total)}


main = command(GenerateConfig)(generate)


def check(config: GenerateConfig) -> None:
    """Refuses a configuration before anything slow starts or anything is written.

    Raises:
        UserError: Naming the key, its value and what to do.
    """
    for key in ("num_samples", "bs"):
        if getattr(config, key) < 1:
            raise UserError(f"{key}={getattr(config, key)} must be 1 or more.")
    if config.num_workers < 0 or config.seed < 0:
        raise UserError(
            f"num_workers={config.num_workers} and seed={config.seed} must be 0 or more."
        )
    check_choice("layout", config.layout, get_args(Layout))
    config.trainer.check()
    config.jitter.check()


class Writer(Protocol):
    """What takes painted pairs."""

    def add(self, candidate: Candidate, image: npt.NDArray[Any]) -> None:
        """Takes a mask and its image, (H, W, K) in the stored dtype."""


def paint_all(
    generator: LoadedGenerator,
    candidates: CandidateMasks,
    writer: Writer,
    config: GenerateConfig,
    device: torch.device,
) -> None:
    """Paints every candidate while workers draw the next masks and threads save the last pairs."""
    loader: DataLoader[Candidate] = DataLoader(
        candidates,
        batch_size=config.bs,
        num_workers=min(config.num_workers, len(candidates)),
        collate_fn=list,
    )
    bar = track(loader, "Painting", total=len(loader), disable=not len(candidates))
    for batch in cast(Any, bar):
        images = paint(
            generator,
            [candidate.label for candidate in batch],
            seed=config.seed,
            indices=[candidate.index for candidate in batch],
            device=device,
        )
        for candidate, image in zip(batch, images, strict=True):
            writer.add(candidate, image)


def _open_folder(
    folder: Path, config: GenerateConfig, generator: LoadedGenerator, root: Path, masks: int
) -> int:
    """Starts the folder, or finds how many candidates of the same generation it holds."""
    settings = {k: v for k, v in plain(config).items() if k not in _FREE_TO_CHANGE}
    facts = {
        "format": 1,
        "checkpoint": {"sha256": generator.digest, "epoch": generator.epoch},
        "masks": masks,
        "palette": generator.facts.palette.to_dict(),
        "image_size": generator.facts.config["image_size"],
        "config": {**settings, "data_root": str(root)},
    }
    if not folder.exists() or not any(folder.iterdir()):
        write_json(folder / FACTS, facts)
        return 0
    if not (folder / FACTS).is_file():
        raise UserError(f"save_dir={folder} holds other files. Choose a new folder.")
    stored = json.loads((folder / FACTS).read_text())
    for key, value in facts.items():
        if stored.get(key) != value:
            was, now = stored.get(key), value
            if isinstance(was, dict) and isinstance(now, dict):
                differing = [k for k in now if was.get(k) != now[k]]
                key = f"{key}.{differing[0]}" if differing else key
                was, now = (was.get(differing[0]), now[differing[0]]) if differing else (was, now)
            raise UserError(
                f"save_dir={folder} holds pairs of another generation: {key} was {was}, now "
                f"{now}. Choose a new folder, or repeat the settings in {folder / FACTS}."
            )
    return len(read_manifest(folder))


def _say_start(
    config: GenerateConfig, generator: LoadedGenerator, root: Path, masks: int, done: int
) -> None:
    size = generator.facts.config["image_size"]
    where = "GPU" if config.trainer.on_gpu() else "CPU"
    print(
        f"Painting {plural(max(0, config.num_samples - done), 'pair')} of {size}x{size} px on the "
        f"{where} from {plural(masks, 'mask')} of {root / 'train'}, with a generator of "
        f"{plural(generator.epoch, 'epoch')}, into {config.save_dir}."
    )
    if done:
        print(f"Going on: {plural(done, 'pair')} listed in {Path(config.save_dir) / MANIFEST}.")


def _write_contact_sheet(writer: PairWriter, total: int) -> None:
    """Shows the first pairs, four masks and images a row."""
    pictures = []
    for index in range(min(_SHOWN, total)):
        image_path, mask_path = writer.paths(index)
        label, _ = writer.reader.read(mask_path)
        pictures += [
            writer.reader.palette.color_table[label],
            writer.scaling.shown(read_image(image_path)),
        ]
    if pictures:
        write_picture(writer.folder / SHEET, beside(pictures, columns=8))
