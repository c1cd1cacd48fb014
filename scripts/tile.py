"""See `python scripts/tile.py --help`."""

from geoseg_gan.tile import main

if __name__ == "__main__":
    main()
