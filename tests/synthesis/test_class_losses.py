import numpy as np
import pytest
import torch

from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import Palette, PaletteClass
from geoseg_gan.data.scan import scan
from geoseg_gan.synthesis.recognizer import Recognizer, measure_class_losses


def test_every_pixel_of_the_real_images_counts_once(palette, tmp_path, make_folder):
    # Three pictures of 40x72 px, six windows each; a class that never occurs has no loss.
    reader = MaskReader(
        Palette([*palette.classes, PaletteClass("Never", [1, 2, 3])], palette.ignore)
    )
    index = scan(
        find_pairs(make_folder(tmp_path / "data", train=3, size=(40, 72)), "train"), reader
    )
    logits = torch.zeros(18, 1, 4, 32, 32)
    logits[:, :, 0] = torch.arange(18).view(-1, 1, 1, 1) / 10  # of each window another one
    seen = iter(logits)
    recognizer = Recognizer("abc", None, lambda pixels: next(seen), range(4))
    means = measure_class_losses(recognizer, index, reader, "crop", 32)
    sums, pixels = np.zeros(3), np.zeros(3)
    for number, value in enumerate(np.arange(18) / 10):
        pair, (row, column) = index.pairs[number // 6], divmod(number % 6, 3)
        label = reader.read(pair.mask)[0]
        rows, columns = ((0, 32), (32, 40))[row], ((0, 32), (32, 64), (64, 72))[column]
        label = label[slice(*rows), slice(*columns)]
        counts = np.bincount(label.ravel(), minlength=256)[:3]
        likeliest = np.log(np.exp(value) + 3)
        sums, pixels = sums + counts * (likeliest - [value, 0, 0]), pixels + counts
    assert next(seen, None) is None and pixels.tolist() == index.pixels[:, :3].sum(0).tolist()
    assert means == [*map(pytest.approx, sums / pixels), None]
