"""See `python scripts/trial.py --help`."""

from geoseg_gan.cli import trial

if __name__ == "__main__":
    trial()
