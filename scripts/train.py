"""See `python scripts/train.py --help`."""

from geoseg_gan.train import main

if __name__ == "__main__":
    main()
