"""See `python scripts/tile.py --help`."""

from geoseg_gan.data.settings import tile_command

if __name__ == "__main__":
    tile_command()
