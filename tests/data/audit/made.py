"""Made-up images and masks with planted mistakes, and what a check finds in them."""

import numpy as np
from PIL import Image
from rasters import write_geotiff

SIDE = 64


def texture(seed, side=SIDE, bands=3):
    """An image that resembles no other: blobs of several sizes."""
    rng = np.random.default_rng(seed)
    image = np.zeros((side, side, bands))
    for scale in (4, 8, 16):
        coarse = rng.normal(0, 1, (side // scale + 1, side // scale + 1, bands))
        image += coarse.repeat(scale, 0).repeat(scale, 1)[:side, :side]
    return (128 + 25 * image).clip(1, 250).astype(np.uint8)


def regions(seed, classes, side=SIDE, cell=8):
    """Class IDs in squares, each of them at least once."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (side // cell, side // cell))
    coarse.flat[:classes] = np.arange(classes)
    return coarse.repeat(cell, 0).repeat(cell, 1).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def save_tiff(path, pixels, **place):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_geotiff(path, pixels if pixels.ndim == 3 else pixels[..., None], **place)


def kinds(check):
    """The findings' kinds with their severities."""
    return {finding.kind: finding.severity for finding in check.findings}


def finding(check, kind):
    (found,) = [entry for entry in check.findings if entry.kind == kind]
    return found
