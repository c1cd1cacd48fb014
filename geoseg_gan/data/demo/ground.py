"""Open land of the demo world: crops, meadows, woods, heath and water.

Every painter writes reflectance and height; shading and cast shadows come afterwards from the
height, so that all objects of a tile agree on where the sun stands.
"""

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from geoseg_gan.data.demo.scene import (
    BACKGROUND,
    CROPLAND,
    FINE,
    FOREST,
    GRASSLAND,
    SEMINATURAL,
    Floats,
    Mask,
    Points,
    Scene,
    Sky,
    fractal_noise,
    lay,
    rgb,
    shade,
)


def _blend(first: Floats, second: Floats, share: Floats) -> Floats:
    shape = (*share.shape, 3)
    first, second = (np.ascontiguousarray(np.broadcast_to(c, shape)) for c in (first, second))
    return np.asarray(cv2.blendLinear(first, second, 1 - share, share), np.float32)


def _soft_step(values: Floats, sharpness: float) -> Floats:
    return np.asarray(np.clip(0.5 + sharpness * values, 0, 1), np.float32)


def _headings(rng: np.random.Generator, scene: Scene, spread: float) -> Floats:
    """Along or across the field borders, for each parcel."""
    turns = rng.choice([0, np.pi / 2], scene.parcels)
    return (scene.heading + turns + rng.normal(0, spread, scene.parcels)).astype(np.float32)


def _across(headings: Floats, parcel: npt.NDArray[np.int32]) -> Floats:
    at = np.arange(len(parcel), dtype=np.float32)
    across = at * np.take(np.cos(headings), parcel)
    across += at[:, None] * np.take(np.sin(headings), parcel)
    return np.asarray(across, np.float32)


def paint_cropland(rng: np.random.Generator, scene: Scene, sky: Sky) -> None:
    """Sow every parcel with one crop, worked along its borders and its own direction."""
    mask = scene.label == CROPLAND
    side, count = len(mask), scene.parcels
    s = sky.season
    # colour of the stand, of its thin or wet patches, height, weight in spring and in autumn
    crops = [
        ((92, 124, 62), (126, 138, 84), 1.2, 3.0, 0.6),  # winter wheat
        ((84, 112, 66), (110, 122, 76), 0.8, 1.5, 1.0),  # beet, potatoes, catch crop
        ((190, 182, 70), (150, 158, 72), 2.0, 1.2, 0.0),  # rape in flower
        ((196, 172, 116), (168, 150, 96), 1.2, 0.3, 1.6),  # ripe cereal
        ((188, 168, 130), (160, 148, 112), 0.0, 0.2, 2.4),  # stubble
        ((74, 106, 56), (98, 120, 68), 4.0, 0.4, 1.8),  # maize
        ((122, 98, 78), (98, 78, 62), 0.0, 1.6, 1.6),  # ploughed, heavy soil
        ((164, 140, 112), (134, 112, 90), 0.0, 1.4, 1.0),  # harrowed, light soil
    ]
    weights = np.array([(1 - s) * crop[3] + s * crop[4] for crop in crops])
    kind = rng.choice(len(crops), size=count, p=weights / weights.sum())
    tint = rng.normal(1, 0.07, size=(count, 1)) * rng.normal(1, 0.025, size=(count, 3))
    stand = (np.array([c[0] for c in crops])[kind] / 255 * tint).astype(np.float32)
    patch = (np.array([c[1] for c in crops])[kind] / 255 * tint).astype(np.float32)
    tall = np.array([c[2] for c in crops], np.float32)[kind]
    along = _headings(rng, scene, 0.12)
    row = (rng.choice([3.2, 4.5, 6.0, 9.0], count) * FINE / 2).astype(np.float32)
    lane = (rng.uniform(22, 40, count) * FINE).astype(np.float32)
    relief = (rng.uniform(0.03, 0.30, count) * row / 6).astype(np.float32)
    # only a standing crop shows the lanes in which the sprayer drives
    lane_depth = np.where(tall > 0, rng.uniform(0.05, 0.25, count), 0.03).astype(np.float32)
    headland = (rng.choice([0, 9, 14], count) * FINE).astype(np.float32)

    parcel = scene.parcel
    across = _across(along, parcel)
    # the plough turns at the border, so the outermost rows follow it
    across = np.where(scene.edge < headland[parcel], scene.edge, across)
    across += 0.8 * fractal_noise(rng, side, 60 * FINE, 1)
    width = lane[parcel]
    pass_tone = rng.normal(0, 0.028, 512).astype(np.float32)
    tone = 1 + np.take(pass_tone, (across / (width / 3)).astype(np.int32) & 511)
    wheel = np.abs(np.abs(np.mod(across, width) - width / 2) - 1.3 * FINE) < 0.45 * FINE
    tone -= lane_depth[parcel] * wheel
    rows = np.sin(across * (2 * np.pi / row)[parcel])
    grain = scene.grain
    tone += 0.035 * grain + 0.02 * rows
    patchy = _soft_step(scene.mottle - 0.7, 0.45)
    colour = _blend(np.take(stand, parcel, axis=0), np.take(patch, parcel, axis=0), patchy)
    colour = shade(colour, tone)
    verge = _soft_step(1.3 * FINE - scene.edge + 0.6 * grain, 0.5)
    grown = verge > 0
    colour[grown] += 0.7 * verge[grown][:, None] * (rgb(112, 120, 76) - colour[grown])
    height = tall[parcel] * (1 - verge) + relief[parcel] * rows + 0.10 * grain
    lay(scene, mask, colour, height)


def paint_grassland(rng: np.random.Generator, scene: Scene, sky: Sky) -> None:
    """Grow meadows: mottled sward, mown swaths in some parcels, a few lone trees."""
    mask = scene.label == GRASSLAND
    side, count = len(mask), scene.parcels
    parcel = scene.parcel
    dry = np.clip(sky.dryness + rng.normal(0, 0.2, count), 0, 1)[:, None]
    sward = (rgb(98, 130, 66) * (1 - dry) + rgb(150, 146, 96) * dry).astype(np.float32)
    sward *= rng.normal(1, 0.06, (count, 1)).astype(np.float32)
    along = _headings(rng, scene, 0.2)
    mown = np.where(rng.random(count) < 0.5, rng.uniform(0.03, 0.1, count), 0).astype(np.float32)
    swath = (rng.uniform(5, 12, count) * FINE).astype(np.float32)
    across = _across(along, parcel)
    across += 1.5 * FINE * fractal_noise(rng, side, 80 * FINE, 2)
    grain, mottle = scene.grain, scene.mottle
    stripes = np.clip(2 * np.sin(across * (2 * np.pi / swath)[parcel]), -1, 1)
    tone = 1 + 0.05 * grain + 0.05 * mottle + mown[parcel] * stripes
    colour = _blend(
        np.take(sward, parcel, axis=0), rgb(140, 138, 88), _soft_step(mottle - 0.8, 0.3)
    )
    lay(scene, mask, shade(colour, tone), 0.25 * grain)
    trees = scatter(rng, mask & (scene.edge < 9 * FINE), 55 * FINE)
    trees = trees[rng.random(len(trees)) < 0.25]
    plant(rng, scene.albedo, scene.height, trees, "broad", 4.5, rgb(74, 96, 54))


def scatter(rng: np.random.Generator, mask: Mask, spacing: float) -> Points:
    """Positions (x, y) spread about evenly over a mask (N, N), `spacing` apart on average."""
    steps = int(np.ceil(len(mask) / spacing)) + 1
    grid = np.stack(np.meshgrid(np.arange(steps), np.arange(steps)), -1).reshape(-1, 2)
    points = (grid + rng.uniform(-0.45, 0.45, grid.shape) + rng.random(2)) * spacing
    points = points[((points >= 0) & (points < len(mask))).all(1)]
    where = points.astype(np.intp)
    return points[mask[where[:, 1], where[:, 0]]]


@lru_cache(maxsize=512)
def _crown(radius: int, shape: str, variant: int) -> Floats:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    turn = np.arctan2(y, x)
    lobes = 0.10 * np.sin(3 * turn + variant) + 0.07 * np.sin(5 * turn + 2.3 * variant)
    rho = np.hypot(x, y) / (radius * (0.9 + lobes))
    dome = 1 - rho if shape == "cone" else np.sqrt(np.clip(1 - rho**2, 0, None))
    stem, depth = {"broad": (2.0, 0.9), "cone": (2.2, 1.8), "shrub": (0.3, 0.9)}[shape]
    return np.where(rho < 1, radius * (stem + depth * dome), -1e4).astype(np.float32)


def plant(
    rng: np.random.Generator,
    albedo: Floats,
    height: Floats,
    centres: Points,
    shape: str,
    radius: float,
    colour: Floats,
) -> None:
    """Adds trees or shrubs at `centres` (M, 2) in place; the taller crown hides the lower.

    Crowns are round ("broad", or "shrub" for low ones) or conifers ("cone"), with a mean radius in
    pixels of the finished tile and a mean colour (3,). `albedo` must be contiguous.
    """
    count = len(centres)
    radii = np.clip(rng.normal(radius, 0.22 * radius, count) * FINE, 2, None).astype(int)
    tops = rng.normal(1, 0.12, count).astype(np.float32)
    tints = colour * rng.normal(1, 0.09, (count, 1)) * rng.normal(1, 0.035, (count, 3))
    variants = rng.integers(8, size=count)
    side = len(height)
    owner = np.zeros((side, side), np.int32)
    stems = zip(centres.astype(int).tolist(), radii.tolist(), tops, variants.tolist(), strict=True)
    for number, ((x, y), r, top, variant) in enumerate(stems, start=1):
        left, upper = max(x - r, 0), max(y - r, 0)
        right, lower = x + r + 1, y + r + 1
        ground = height[upper:lower, left:right]
        rows, columns = ground.shape
        crown = _crown(r, shape, variant)[upper - y + r :, left - x + r :][:rows, :columns]
        raised = crown * top
        seen = raised > ground
        np.copyto(ground, raised, where=seen)
        np.copyto(owner[upper:lower, left:right], number, where=seen)
    covered = np.flatnonzero(owner)
    albedo.reshape(-1, 3)[covered] = tints.astype(np.float32)[owner.ravel()[covered] - 1]


def paint_forest(rng: np.random.Generator, scene: Scene, sky: Sky) -> None:
    """Fill the forest with stands of one kind each, crown by crown."""
    mask = scene.label == FOREST
    side = len(mask)
    fresh, faded = 1 - sky.season, max(sky.season - 0.6, 0) * 2
    leaf = rgb(80, 106, 58) + fresh * rgb(14, 16, 0) + faded * rgb(60, 4, -6)
    # crown shape, mean radius and spacing in pixels of the tile, colour
    stands = [
        ("broad", 5.2, 6.4, leaf),
        ("broad", 3.8, 4.8, leaf * np.float32(0.88)),
        ("cone", 3.0, 3.9, rgb(64, 88, 60)),
        ("cone", 2.3, 3.3, rgb(82, 104, 66)),
    ]
    kinds = rng.choice(len(stands), scene.parcels, p=[0.35, 0.25, 0.25, 0.15])[scene.parcel]
    kinds[scene.mottle > 1.0] = rng.integers(len(stands))
    canopy = shade(rgb(72, 78, 52), 1 + 0.12 * scene.grain)
    top = np.zeros_like(scene.height)
    for number, (shape, radius, spacing, colour) in enumerate(stands):
        stems = scatter(rng, mask & (kinds == number), spacing * FINE)
        plant(rng, canopy, top, stems, shape, radius, colour)
    clumps = fractal_noise(rng, side, 2.2 * FINE, 2)
    canopy = shade(canopy, 1 + 0.06 * clumps + 0.05 * scene.mottle)
    lay(scene, mask, canopy, top + 0.35 * clumps)


def paint_seminatural(rng: np.random.Generator, scene: Scene, sky: Sky) -> None:
    """Let rough grass, heath and wet hollows run into each other, with shrubs and hedges."""
    mask = scene.label == SEMINATURAL
    side = len(mask)
    tussock = scene.grain
    patches = fractal_noise(rng, side, 26 * FINE, 4)
    rough = rgb(146, 138, 92) if sky.dryness > 0.4 else rgb(122, 128, 80)
    heath = [rgb(116, 92, 92), rgb(128, 108, 66), rgb(98, 104, 72)][rng.integers(3)]
    colour = _blend(rough, heath, _soft_step(patches, 1.2))
    colour = _blend(colour, rgb(72, 82, 62), 0.8 * _soft_step(scene.mottle - 1.1, 1.5))
    lay(scene, mask, shade(colour, 1 + 0.11 * tussock), 0.7 * tussock)
    # hedges stand on parcel borders; elsewhere shrubs come in thickets
    bushes = scatter(rng, mask, 4.2 * FINE)
    at = bushes.astype(np.intp)
    hedge = scene.edge[at[:, 1], at[:, 0]] < 3.5 * FINE
    thicket = rng.random(len(at)) < 0.10 + 0.4 * (patches[at[:, 1], at[:, 0]] > 0.9)
    chosen = bushes[hedge | thicket]
    plant(rng, scene.albedo, scene.height, chosen, "shrub", 2.4, rgb(78, 92, 56))


def paint_background(rng: np.random.Generator, scene: Scene, sky: Sky) -> None:
    """Fill waters, darker away from the shore, and terrace the bare ground of pits."""
    mask = scene.label == BACKGROUND
    water, bare = mask & scene.water, mask & ~scene.water
    side = len(mask)
    ripple, broad = scene.grain, scene.mottle
    if water.any():
        shore = cv2.distanceTransform(water.astype(np.uint8), cv2.DIST_L2, 3)
        deep = [rgb(38, 56, 62), rgb(58, 74, 62), rgb(46, 72, 84), rgb(84, 88, 72)][rng.integers(4)]
        depth = np.clip(shore / (14 * FINE) + 0.15 * broad, 0, 1).astype(np.float32)
        colour = _blend(rgb(112, 112, 86), deep, np.sqrt(depth))
        tone = 1 + 0.02 * ripple + 0.05 * broad
        lay(scene, water, shade(colour, tone), 0.05 * ripple - FINE)
    if bare.any():
        sand = [rgb(206, 190, 154), rgb(176, 164, 148), rgb(186, 152, 116)][rng.integers(3)]
        level = 1.6 * broad
        step = level - np.sin(2 * np.pi * level) / (2 * np.pi)
        tone = 1 + 0.06 * ripple + 0.05 * fractal_noise(rng, side, 20 * FINE, 3)
        lay(scene, bare, shade(sand, tone), 4.0 * FINE * step + 0.35 * ripple)
