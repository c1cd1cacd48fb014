"""See `python scripts/train_segmenter.py --help`."""

from geoseg_gan.train_segmenter import main

if __name__ == "__main__":
    main()
