"""See `python scripts/studio.py --help`."""

from geoseg_gan.cli import studio

if __name__ == "__main__":
    studio()
