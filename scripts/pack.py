"""See `python scripts/pack.py --help`."""

from geoseg_gan.cli import pack

if __name__ == "__main__":
    pack()
