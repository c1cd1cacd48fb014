"""Random pictures and GeoTIFFs for tests."""

import numpy as np
import rasterio


def noise(bands=3, dtype="uint8", height=20, width=31):
    rng = np.random.default_rng(bands)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(size=(height, width, bands)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (height, width, bands), dtype, endpoint=True)


def write_geotiff(path, pixels, left=0.0, top=0.0, pixel=0.5, **profile):
    """Writes like any GIS would: with a place on Earth (in metres), planar and lzw."""
    height, width, bands = pixels.shape
    place = rasterio.Affine(pixel, 0, 500_000 + left, 0, -pixel, 5_000_000 - top)
    kind = {"height": height, "width": width, "count": bands, "dtype": pixels.dtype}
    kind |= {"driver": "GTiff", "crs": "EPSG:32633", "transform": place, "compress": "lzw"}
    with rasterio.open(path, "w", **kind | profile) as target:
        target.write(np.moveaxis(pixels, -1, 0))
    return path
