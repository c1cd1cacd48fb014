"""See `python scripts/calibrate.py --help`."""

from geoseg_gan.calibrate import main

if __name__ == "__main__":
    main()
