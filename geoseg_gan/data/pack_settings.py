"""What the pack command packs, and where to."""

from dataclasses import dataclass, field
from pathlib import Path

from geoseg_gan.data.settings import DataSettings
from geoseg_gan.data.stream import require_litdata
from geoseg_gan.errors import UserError

_LARGEST = 2047  # MB: LitData counts the bytes of a chunk in 32 bits


@dataclass
class PackSettings:
    """What scripts/pack.py packs, and where to."""

    data_root: str = field(default="data", metadata={"help": "the data folder to pack"})
    out_dir: str = field(default="data/stream", metadata={"help": "new folder for the stream"})
    chunk_mb: float = field(
        default=64.0, metadata={"help": "size of the files in MB; each is fetched as a whole"}
    )
    data: DataSettings = field(default_factory=DataSettings)

    def check(self) -> None:
        """Refuses settings before anything is read, and an out_dir that holds something.

        Raises:
            UserError: Naming the key, its value and what to do.
        """
        if not 0 < self.chunk_mb <= _LARGEST:
            raise UserError(f"chunk_mb={self.chunk_mb:g}: use more than 0, up to {_LARGEST}.")
        self.data.check()
        if self.data.format != "folder":
            raise UserError("scripts/pack.py packs folders. Set data.format=folder.")
        out = Path(self.out_dir)
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(
                f"out_dir={out} exists already. Choose a new folder, or remove this one."
            )
        self.data.check_root(Path(self.data_root))
        require_litdata()
