"""The tile command: from big pictures to a training folder."""

import shlex

from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.table import Table

from geoseg_gan.config import command
from geoseg_gan.data.pairs import Split
from geoseg_gan.data.tile_settings import TileSettings
from geoseg_gan.data.tiling import SPLITS, SplitReport, cut_folder
from geoseg_gan.schemas import TrainConfig


def tile(config: TileSettings) -> dict[Split, SplitReport]:
    """Cuts pictures and masks into a training folder, and prints what became of them.

    Args:
        config: What to cut, how, and where to.

    Returns:
        What became of each split.

    Raises:
        UserError: If settings or source are not as they must be, or a split gets no tile.
    """
    reports = cut_folder(config)
    _summarise(config, reports)
    return reports


main = command(TileSettings)(tile)


def _summarise(config: TileSettings, reports: dict[Split, SplitReport]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    splits = [reports[split] for split in SPLITS]
    table.add_row("pictures", *(f"{r.pictures:,}" for r in splits))
    table.add_row("skipped: smaller than a tile", *(f"{r.skipped:,}" for r in splits))
    table.add_row("groups", *(f"{len(r.groups):,}" for r in splits))
    table.add_row(
        f"tiles of {config.tile_size}x{config.tile_size}", *(f"{len(r.tiles):,}" for r in splits)
    )
    table.add_row("dropped: too much ignore", *(f"{r.dropped:,}" for r in splits))
    shares = zip(*(r.class_shares() for r in splits), strict=True)
    for name, row in zip(config.data.reader().palette.names, shares, strict=True):
        table.add_row(name, *(f"{share:.1%}" for share in row))
    console = Console(soft_wrap=True)  # so that the command below can be copied
    console.print(table)
    console.print(f"Wrote {config.data_root}. Next: {_next_command(config)}", markup=False)


def _next_command(config: TileSettings) -> str:
    """The training command with the same data settings."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    words = [o for o in overrides if o.startswith(("data=", "data."))]
    words.append(f"data_root={config.data_root}")
    if config.tile_size < TrainConfig.image_size:
        words.append(f"image_size={config.tile_size}")
    return shlex.join(["python", "scripts/train.py", *words])
