"""See `python scripts/export.py --help`."""

from geoseg_gan.cli import export

if __name__ == "__main__":
    export()
