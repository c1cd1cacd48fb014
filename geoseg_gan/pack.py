"""The pack command: from a data folder to a stream of few big files."""

import shlex

from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from geoseg_gan.config import command
from geoseg_gan.data.pack_settings import PackSettings
from geoseg_gan.data.packing import PackedSplit, pack_folder
from geoseg_gan.data.pairs import Split
from geoseg_gan.errors import plural


def pack(config: PackSettings) -> dict[Split, PackedSplit]:
    """Packs a data folder, and prints what became of it.

    Args:
        config: What to pack, and where to.

    Returns:
        What became of each split.

    Raises:
        UserError: If settings or folder are not as they must be.
    """
    packed = pack_folder(config)
    console = Console(soft_wrap=True)  # so that the command below can be copied
    for split, part in packed.items():
        console.print(
            f"{split}: {plural(part.pairs, 'pair')} in {plural(part.chunks, 'file')}, "
            f"{part.bytes / 2**20:,.0f} MB",
            highlight=False,
        )
    console.print(f"Wrote {config.out_dir}. Next: {_next_command(config)}", markup=False)
    return packed


main = command(PackSettings)(pack)


def _next_command(config: PackSettings) -> str:
    """The training command with the same data settings."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    words = [o for o in overrides if o.startswith(("data=", "data.")) and "data.cache" not in o]
    words += [f"data_root={config.out_dir}", "data.format=stream", "data.cache=none"]
    return shlex.join(["python", "scripts/train.py", *words])
