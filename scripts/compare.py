"""See `python scripts/compare.py --help`."""

from geoseg_gan.cli import compare

if __name__ == "__main__":
    compare()
