"""See `python scripts/describe.py --help`."""

from geoseg_gan.describe import main

if __name__ == "__main__":
    main()
