"""See `python scripts/train.py --help`."""

from geoseg_gan.cli import train

if __name__ == "__main__":
    train()
