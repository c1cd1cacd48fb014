"""See `python scripts/pack.py --help`."""

from geoseg_gan.pack import main

if __name__ == "__main__":
    main()
