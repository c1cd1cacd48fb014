"""See `python scripts/ladder.py --help`."""

from geoseg_gan.ladder import main

if __name__ == "__main__":
    main()
