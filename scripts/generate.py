"""See `python scripts/generate.py --help`."""

from geoseg_gan.cli import generate

if __name__ == "__main__":
    generate()
