"""See `python scripts/prepare.py --help`."""

from geoseg_gan.data.settings import prepare_command

if __name__ == "__main__":
    prepare_command()
