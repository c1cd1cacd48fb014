"""Random pictures and GeoTIFFs for tests."""

import numpy as np
import rasterio


def noise(bands=3, dtype="uint8", height=20, width=31):
    rng = np.random.default_rng(bands)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(size=(height, width, bands)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (height, width, bands), dtype, endpoint=True)


def write_geotiff(path, pixels, **profile):
    """Writes like any GIS would: with a place on Earth, planar and lzw."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=pixels.shape[2],
        dtype=pixels.dtype,
        crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
        compress="lzw",
        **profile,
    ) as target:
        target.write(np.moveaxis(pixels, -1, 0))
    return path
