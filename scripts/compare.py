"""See `python scripts/compare.py --help`."""

from geoseg_gan.compare import main

if __name__ == "__main__":
    main()
