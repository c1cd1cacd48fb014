"""How the settlements of the demo world look: roads, gardens, roofs and parked cars."""

import cv2
import numpy as np

from geoseg_gan.data.demo.ground import plant, scatter
from geoseg_gan.data.demo.scene import (
    FINE,
    SETTLEMENT,
    Building,
    Floats,
    Points,
    Scene,
    Sky,
    lay,
    rgb,
    shade,
)


def _box(centre: Points, heading: float, length: float, width: float) -> Points:
    axis = np.array([np.cos(heading), np.sin(heading)])
    ahead, aside = axis * length / 2, np.array([-axis[1], axis[0]]) * width / 2
    return np.array(
        [
            centre + ahead + aside,
            centre + ahead - aside,
            centre - ahead - aside,
            centre - ahead + aside,
        ]
    )


def _fill(image: Floats, corners: Points, value: Floats | float) -> None:
    colour = np.broadcast_to(np.asarray(value, float), 3 if image.ndim == 3 else 1).tolist()
    cv2.fillPoly(image, [np.round(corners).astype(np.int32)], colour)


def _raise_building(rng: np.random.Generator, scene: Scene, house: Building) -> None:
    roofs = [(150, 84, 64), (168, 104, 76), (122, 82, 66), (86, 86, 92), (112, 108, 106)]
    sheds = [(178, 178, 176), (142, 146, 148), (120, 126, 118), (206, 204, 198), (96, 94, 92)]
    flat = house.roof == "flat"
    colour = rgb(*(sheds if flat or house.width > 22 * FINE else roofs)[rng.integers(5)])
    colour *= np.float32(rng.normal(1, 0.06))
    reach = int(np.hypot(house.length, house.width) / 2) + 2
    x0, y0 = (int(c) - reach for c in house.centre)
    left, upper, size = max(x0, 0), max(y0, 0), len(scene.height)
    right, lower = min(x0 + 2 * reach, size), min(y0 + 2 * reach, size)
    if left >= right or upper >= lower:
        return
    y, x = np.mgrid[upper:lower, left:right].astype(np.float32)
    x, y = x - house.centre[0], y - house.centre[1]
    along = np.abs(x * np.cos(house.heading) + y * np.sin(house.heading))
    across = -x * np.sin(house.heading) + y * np.cos(house.heading)
    inside = (along < house.length / 2) & (np.abs(across) < house.width / 2)
    # a building must not stick out over the ground that its plot labels
    inside &= scene.label[upper:lower, left:right] == SETTLEMENT
    slope = house.width / 2 - np.abs(across)
    if house.roof == "hip":
        slope = np.minimum(slope, house.length / 2 - along)
    pitch = 0.0 if flat else rng.uniform(0.35, 0.8)
    tiles = 1 + 0.03 * np.sin(along * np.pi) + rng.normal(0, 0.025, x.shape)
    if flat:
        tiles[slope < 1.2] *= 1.12
    roof = (colour * tiles[..., None]).astype(np.float32)
    if not flat and rng.random() < 0.25:
        panels = (across > 2) & (slope > 2) & (along < house.length * rng.uniform(0.15, 0.4))
        roof[panels] = rgb(44, 52, 76)
    np.copyto(scene.albedo[upper:lower, left:right], roof, where=inside[..., None])
    top = house.wall + pitch * np.clip(slope, 0, None)
    np.copyto(scene.height[upper:lower, left:right], top, where=inside)


def _park_car(rng: np.random.Generator, scene: Scene, place: Points, heading: float) -> None:
    paint = [(226, 226, 224), (60, 62, 66), (150, 152, 156), (140, 40, 36), (52, 70, 110)]
    body = _box(place, heading, 5.6 * FINE, 2.4 * FINE)
    _fill(scene.albedo, body, rgb(*paint[rng.integers(len(paint))]))
    _fill(scene.height, body, 1.8 * FINE)


def paint_settlement(rng: np.random.Generator, scene: Scene, sky: Sky) -> None:
    """Build roads, gardens, yards, houses and what stands around them."""
    mask = scene.label == SETTLEMENT
    ground, top = scene.albedo, scene.height
    keep, level = ground.copy(), top.copy()
    lay(scene, mask, shade(rgb(150, 146, 138), 1 + 0.05 * scene.grain), top)
    lawn = rgb(104, 132, 70) * (1 - sky.dryness) + rgb(142, 140, 92) * sky.dryness
    for plot in scene.plots:
        paved = rng.random() < 0.2
        tint = np.float32(rng.normal(1, 0.09))
        _fill(ground, plot, (rgb(160, 154, 146) if paved else lawn) * tint)
        front = rng.uniform(0.1, 0.8)
        entry = plot[0] + front * (plot[1] - plot[0])
        inward = (plot[3] - plot[0]) * rng.uniform(0.3, 0.6)
        drive = np.array([entry, entry + (plot[1] - plot[0]) * 0.15])
        _fill(ground, np.vstack([drive, drive[::-1] + inward]), rgb(172, 164, 154) * tint)
        bed = plot[3] + rng.uniform(0.1, 0.6) * (plot[2] - plot[3]) - 0.3 * inward
        _fill(ground, _box(bed, rng.uniform(0, 3), 9 * FINE, 5 * FINE), rgb(120, 100, 76) * tint)
        if rng.random() < 0.5:
            fence = [np.round(plot).astype(np.int32)]
            cv2.polylines(ground, fence, True, rgb(70, 88, 52).tolist(), FINE)
            cv2.polylines(top, fence, True, 2.2 * FINE, FINE)
        if rng.random() < 0.08:
            pool = _box(plot.mean(0) + 0.2 * inward, rng.uniform(0, 3), 10 * FINE, 5 * FINE)
            _fill(ground, pool, rgb(90, 178, 196))
    for line, width, paved in scene.roads:
        curve = [np.round(line).astype(np.int32)]
        grey = rng.uniform(104, 146)
        rim, face = (
            (rgb(168, 164, 156), rgb(grey, grey, grey + 3))
            if paved
            else (rgb(150, 143, 120), rgb(188, 174, 148))
        )
        cv2.polylines(ground, curve, False, rim.tolist(), round(width))
        cv2.polylines(ground, curve, False, face.tolist(), round(width - 1.4 * FINE))
        cv2.polylines(top, curve, False, 0.0, round(width))
        if paved and width > 6.5 * FINE:
            for start, end in zip(line[::2], line[1::2], strict=False):
                dash = np.round([start, end]).astype(np.int32)
                cv2.line(ground, dash[0], dash[1], rgb(214, 214, 210).tolist(), 1)
        for _ in range(rng.poisson(len(line) / 40) if paved else 0):
            at = rng.integers(len(line) - 1)
            step = line[at + 1] - line[at]
            heading = float(np.arctan2(step[1], step[0]))
            aside = np.array([-np.sin(heading), np.cos(heading)]) * width * 0.22
            _park_car(rng, scene, line[at] + aside, heading)
    for house in scene.buildings:
        _raise_building(rng, scene, house)
    # paving and asphalt are grey, so what is short of blue is garden
    garden = mask & (top < 1) & (ground[..., 1] > 1.25 * ground[..., 2])
    trees = scatter(rng, garden, 8 * FINE)
    trees = trees[rng.random(len(trees)) < 0.4]
    plant(rng, ground, top, trees, "broad", 2.8, rgb(80, 106, 58))
    ground[:] = shade(ground, 1 + 0.04 * scene.grain)
    lay(scene, ~mask, keep, level)
