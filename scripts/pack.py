"""See `python scripts/pack.py --help`."""

from geoseg_gan.data.settings import pack_command

if __name__ == "__main__":
    pack_command()
