"""See `python scripts/tile.py --help`."""

from geoseg_gan.cli import tile

if __name__ == "__main__":
    tile()
