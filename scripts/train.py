"""See `python scripts/train.py --help`."""

from geoseg_gan.training.settings import train_command

if __name__ == "__main__":
    train_command()
