"""A procedurally drawn land-cover world, as demo and test data that need no download.

Each tile is a window onto its own stretch of countryside: parcels cut by straight borders, with
roads along the first cuts, villages along the roads, forests that bulge over their borders,
waters and the odd rough corner. `layout` divides the land, `ground` and `town` give the classes
their looks, and here the finished scene is lit and photographed.
"""

import cv2
import numpy as np
import numpy.typing as npt

from geoseg_gan.data.demo import ground
from geoseg_gan.data.demo.layout import lay_out
from geoseg_gan.data.demo.scene import (
    BACKGROUND,
    CROPLAND,
    FINE,
    FOREST,
    GRASSLAND,
    SEMINATURAL,
    SETTLEMENT,
    Floats,
    Scene,
    Sky,
)
from geoseg_gan.data.demo.town import paint_settlement
from geoseg_gan.data.palette import IGNORE

NUM_CLASSES = 6

# Objects outside the tile still reach in with their shadows.
_MARGIN = 20


def _draw_sky(rng: np.random.Generator) -> Sky:
    warm = rng.normal(0, 0.035)
    return Sky(
        season=rng.random(),
        dryness=rng.random(),
        azimuth=rng.uniform(0, 2 * np.pi),
        elevation=np.deg2rad(rng.uniform(32, 62)),
        ambient=rng.uniform(0.40, 0.58),
        haze=rng.uniform(0.0, 0.16),
        gains=(1 + warm, float(rng.normal(1, 0.015)), 1 - warm),
    )


def _light(scene: Scene, sky: Sky) -> Floats:
    height = scene.height
    sun = np.array([np.cos(sky.azimuth), np.sin(sky.azimuth)], np.float32)
    rise = float(np.tan(sky.elevation))
    slope_x = np.clip(cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=1 / 8), -2.5, 2.5)
    slope_y = np.clip(cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=1 / 8), -2.5, 2.5)
    facing = 1 - (slope_x * sun[0] + slope_y * sun[1]) / rise
    direct = np.clip(facing / np.sqrt(1 + slope_x**2 + slope_y**2), 0, 1.7)
    # the height of the shadow's upper edge: the tallest thing towards the sun, less what the ray
    # has sunk on its way; doubling the stride covers 127 steps with 7 shifts
    ray = height
    for stride in (1, 2, 4, 8, 16, 32, 64):
        move = np.array([[1, 0, stride * sun[0]], [0, 1, stride * sun[1]]])
        ahead = cv2.warpAffine(
            ray,
            move,
            ray.shape[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        ray = np.maximum(ray, ahead - np.float32(stride * rise))
    shadow = np.clip((ray - height) / 2.5, 0, 1)
    direct *= 1 - shadow
    # what reaches a shadow comes from the blue sky
    sunlight = np.float32(1 - sky.ambient) * direct
    blueness = np.array([0.94, 0.99, 1.09], np.float32) * np.float32(sky.ambient)
    light = cv2.merge([sunlight + channel for channel in blueness])
    return np.asarray(cv2.multiply(scene.albedo, light), np.float32)


def _expose(rng: np.random.Generator, image: Floats, sky: Sky) -> npt.NDArray[np.uint8]:
    veil = np.array([0.62, 0.67, 0.74], np.float32)
    image = image * (1 - sky.haze) + veil * sky.haze
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.65)), np.float32)
    image *= np.array(sky.gains, np.float32) * np.float32(rng.uniform(0.94, 1.14))
    image = np.clip(image, 0, 1) ** np.float32(rng.uniform(0.88, 1.08))
    image += rng.uniform(0.004, 0.014) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.clip(image * 255 + 0.5, 0, 255), np.uint8)


def _coarsen(fine: Floats) -> Floats:
    size = len(fine) // FINE
    return np.asarray(cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA), np.float32)


def draw_tile(
    rng: np.random.Generator, size: int = 256
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draws one aerial image and its land-cover mask.

    A pixel is about 0.75 m at every size: a larger tile shows more land. The same state of `rng`
    gives the same tile.

    Returns:
        The image, uint8 RGB (size, size, 3), and the mask, uint8 (size, size), with class IDs 0
        to 5 and 255 where the image has no data and is black.

    Raises:
        ValueError: If `size` is below 16.
    """
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    sky = _draw_sky(rng)
    scene = lay_out(rng, (size + 2 * _MARGIN) * FINE)
    present = np.unique(scene.label).tolist()
    painters = (
        (CROPLAND, ground.paint_cropland),
        (GRASSLAND, ground.paint_grassland),
        (BACKGROUND, ground.paint_background),
        (SEMINATURAL, ground.paint_seminatural),
        (FOREST, ground.paint_forest),
        (SETTLEMENT, paint_settlement),
    )
    for class_id, painter in painters:
        if class_id in present:
            painter(rng, scene, sky)
    window = slice(_MARGIN * FINE, -_MARGIN * FINE)
    fine = _light(scene, sky)[window, window]
    image = _expose(rng, _coarsen(fine), sky)
    cover = [_coarsen((scene.label[window, window] == k).astype(np.float32)) for k in present]
    label = np.array(present, np.uint8)[np.argmax(cover, axis=0)]
    if rng.random() < 0.03:
        turn = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[:size, :size] - (size - 1) / 2
        gone = x * np.cos(turn) + y * np.sin(turn) > rng.uniform(0.40, 0.58) * size
        label[gone] = IGNORE
        image[gone] = 0
    return image, label
