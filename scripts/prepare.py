"""See `python scripts/prepare.py --help`."""

from geoseg_gan.cli import prepare

if __name__ == "__main__":
    prepare()
