"""How the land of the demo world is divided: parcels, woods, waters, roads and villages."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from geoseg_gan.data.demo import scene as scene
from geoseg_gan.data.demo.scene import FINE, Building, Mask, Points, Scene, densify, pixels

_WORLD = 600


@dataclass
class _Land:
    rng: np.random.Generator
    side: int
    extent: float
    corner: Points
    axes: Points
    bend: Callable[[Points], Points]

    def places(self, density: float) -> Points:
        """Draw positions all over the land, `density` of them to a world of the usual extent."""
        count = self.rng.poisson(density * (self.extent / (_WORLD * FINE)) ** 2)
        return self.corner + self.rng.random((count, 2)) * self.extent @ self.axes

    def blob(self, centre: Points, radius: float) -> Mask:
        """Outline a ragged round area; it is empty when it lies out of view."""
        if np.any(np.abs(centre - self.side / 2) > self.side / 2 + 1.6 * radius):
            return np.zeros((self.side, self.side), np.bool_)
        # half the resolution is plenty for an outline this ragged
        half = -(-self.side // 2)
        at = 2 * np.arange(half, dtype=np.float32)
        x, y = at - np.float32(centre[0]), at[:, None] - np.float32(centre[1])
        turn, squeeze = self.rng.uniform(0, np.pi), self.rng.uniform(1, 1.5)
        u = (x * np.cos(turn) + y * np.sin(turn)) / (squeeze * radius)
        v = (y * np.cos(turn) - x * np.sin(turn)) * (squeeze / radius)
        ragged = scene.fractal_noise(self.rng, half, max(radius * 0.35, 4), 4)
        field = np.sqrt(u * u + v * v).astype(np.float32) + np.float32(0.18) * ragged
        return np.asarray(cv2.resize(field, (self.side, self.side)) < 1, np.bool_)


def _settle_land(rng: np.random.Generator, side: int) -> _Land:
    extent = max(_WORLD * FINE, 1.5 * side)
    turn = rng.uniform(0, np.pi / 2)
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    slack = (extent - 1.45 * side) / 2
    centre = side / 2 + rng.uniform(-slack, slack, 2) @ axes
    waves = rng.normal(0, 1, (3, 2)) * 2 * np.pi / (360 * FINE)
    phases = rng.uniform(0, 2 * np.pi, 3)
    swing = rng.normal(0, 1, (3, 2)) * rng.uniform(1, 9) * FINE

    def bend(points: Points) -> Points:
        return np.asarray(points + np.sin(points @ waves.T + phases) @ swing)

    return _Land(rng, side, extent, centre - extent / 2 * axes.sum(0), axes, bend)


def _direction(start: Points, end: Points) -> tuple[Points, float]:
    length = float(np.hypot(*(end - start)))
    return (end - start) / length, length


def _divide(land: _Land) -> tuple[list[Points], list[tuple[Points, float]]]:
    # Farmland is divided over and over; the oldest, longest cuts later carry the roads.
    rng = land.rng
    grain = rng.uniform(75, 190) * FINE
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * land.extent
    pending = [land.corner + corners @ land.axes]
    parcels: list[Points] = []
    cuts: list[tuple[Points, float]] = []
    while pending:
        polygon = pending.pop()
        local = polygon @ land.axes.T
        spans = np.ptp(local, axis=0)
        size = float(np.sqrt(np.prod(spans)))
        if size < grain * rng.uniform(0.9, 1.7) or spans.max() < 40 * FINE:
            parcels.append(polygon)
            continue
        longest = int(spans[1] > spans[0])
        where = local.min(0) + spans * rng.uniform(0.34, 0.66)
        tilt = rng.normal(0, 0.07)
        normal = land.axes[longest] + tilt * land.axes[1 - longest]
        low, high, ends = scene.split(polygon, where @ land.axes, normal)
        cuts.append((ends, size))
        pending += [low, high]
    return parcels, cuts


class _Builder:
    def __init__(self, land: _Land, label: npt.NDArray[np.uint8]) -> None:
        self.land, self.label = land, label
        self.roads: list[tuple[Points, float, bool]] = []
        self.plots: list[Points] = []
        self.buildings: list[Building] = []

    def road(self, ends: Points, width: float, paved: bool) -> bool:
        line = self.land.bend(densify(ends, 5.0 * FINE))
        # a bridge spans a river, but nobody builds one across a lake or a pit
        if (self._labels(line) == scene.BACKGROUND).sum() > 8:
            return False
        self.roads.append((line, width, paved))
        cv2.polylines(self.label, [pixels(line)], False, scene.SETTLEMENT, round(width))
        return True

    def plot(self, corners: Points) -> Points | None:
        corners = self.land.bend(corners)
        side = self.land.side
        if (corners.max(0) < 0).any() or (corners.min(0) >= side).any():
            return None
        middle = corners.mean(0)
        inner = middle + 0.8 * (densify(np.vstack([corners, corners[:1]])) - middle)
        taken = [scene.SETTLEMENT, scene.BACKGROUND]
        if np.isin(self._labels(np.vstack([inner, middle])), taken).any():
            return None
        cv2.fillPoly(self.label, [pixels(corners)], scene.SETTLEMENT)
        self.plots.append(corners)
        return corners

    def _labels(self, points: Points) -> npt.NDArray[np.uint8]:
        """The labels at those of the points that are in view."""
        at = pixels(points)
        at = at[((at >= 0) & (at < self.land.side)).all(1)]
        return self.label[at[:, 1], at[:, 0]]

    def house(self, corners: Points) -> None:
        rng = self.land.rng
        along, inward = corners[1] - corners[0], corners[3] - corners[0]
        heading = float(np.arctan2(along[1], along[0]))
        frontage, depth = np.hypot(*along), np.hypot(*inward)
        if frontage > 50 * FINE:
            for _ in range(rng.integers(1, 4)):
                centre = corners[0] + rng.uniform(0.28, 0.72) * along
                centre += rng.uniform(0.3, 0.7) * inward
                roof = rng.choice(["flat", "gable"])
                self._build(centre, heading, 0.5 * frontage, 0.36 * depth, roof)
            return
        centre = corners[0] + rng.uniform(0.4, 0.6) * along + rng.uniform(0.3, 0.45) * inward
        width = rng.uniform(10, 13) * FINE
        turned = heading + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.03)
        length = width * rng.uniform(1.05, 1.5)
        self._build(centre, turned, length, width, rng.choice(["gable", "gable", "hip"]))
        if rng.random() < 0.5:
            spot = corners[0] + rng.choice([0.15, 0.85]) * along + rng.uniform(0.4, 0.8) * inward
            self._build(spot, turned, 7 * FINE, 5 * FINE, "flat")

    def _build(
        self, centre: Points, heading: float, length: float, width: float, roof: str
    ) -> None:
        wall = (4.0 if width < 9 * FINE else self.land.rng.uniform(5, 8)) * FINE
        place = (float(centre[0]), float(centre[1]))
        self.buildings.append(Building(place, heading, length, width, wall, roof))

    def row(self, start: Points, end: Points, width: float, large: bool = False) -> None:
        rng = self.land.rng
        ahead, length = _direction(start, end)
        for hand in (-1, 1):
            aside = hand * np.array([-ahead[1], ahead[0]])
            at = rng.uniform(0, 10) * FINE
            while at < length - 15 * FINE:
                low, high = (60, 100) if large or rng.random() < 0.06 else (22, 34)
                frontage = rng.uniform(low, high) * FINE
                depth = max(rng.uniform(30, 48) * FINE, 0.7 * frontage)
                near = start + at * ahead + aside * width / 2
                corners = np.array([near, near + frontage * ahead])
                corners = np.vstack([corners, corners[::-1] + aside * depth])
                made = self.plot(corners) if rng.random() < 0.93 else None
                if made is not None:
                    self.house(made)
                at += frontage

    def village(self, road: tuple[Points, float], span: float) -> None:
        rng = self.land.rng
        (start, end), width = road
        ahead, length = _direction(start, end)
        middle = rng.uniform(0, length)
        first, last = max(middle - span / 2, 0), min(middle + span / 2, length)
        streets = []
        for hand in rng.permutation([-1, 1])[: rng.integers(0, 3)]:
            corner = start + rng.uniform(first, last) * ahead
            away = hand * np.array([-ahead[1], ahead[0]]) + rng.normal(0, 0.15) * ahead
            street = np.array([corner, corner + away * rng.uniform(70, 150) * FINE])
            if self.road(street, 5.5 * FINE, True):
                streets.append(street)
        self.row(start + first * ahead, start + last * ahead, width)
        for street in streets:
            self.row(street[0], street[1], 5.5 * FINE)


def _settle(land: _Land, cuts: list[tuple[Points, float]], builder: _Builder) -> None:
    rng = land.rng
    paved = []
    for ends, size in cuts:
        chance = rng.random()
        if chance < (0.55 if size > 480 * FINE else 0.25 if size > 330 * FINE else 0):
            width = (8.0 if size > 480 * FINE else 6.0) * FINE
            if builder.road(ends, width, True):
                paved.append((ends, width))
        elif chance > 0.82 and size > 200 * FINE:
            builder.road(ends, rng.uniform(3.5, 4.5) * FINE, False)
    if not paved:
        return
    lengths = np.array([_direction(*ends)[1] for ends, _ in paved])
    for _ in land.places(0.36):
        road = paved[rng.choice(len(paved), p=lengths / lengths.sum())]
        builder.village(road, rng.uniform(120, 280) * FINE)
    for _ in land.places(0.3):
        (start, end), width = paved[rng.integers(len(paved))]
        at = start + rng.uniform(0, 0.85) * (end - start)
        ahead, _ = _direction(start, end)
        builder.row(at, at + 40 * FINE * ahead, width, large=True)


def _river(land: _Land) -> Points:
    rng = land.rng
    way = np.linspace(0, 1, 80)
    drift = rng.uniform(0.1, 0.9) + 0.2 * rng.normal() * (way - 0.5)
    for wavelength, swing in ((0.5, 0.05), (0.21, 0.025)):
        wave = np.sin(2 * np.pi * (way / wavelength + rng.random()))
        drift += swing * wave * rng.uniform(0.3, 1.2)
    line = np.stack([way, drift], 1)[:, :: rng.choice([-1, 1])]
    return np.asarray(land.corner + line * land.extent @ land.axes)


def lay_out(rng: np.random.Generator, side: int) -> Scene:
    """Lays out the classes, borders, roads and buildings of one tile, `side` fine pixels wide."""
    land = _settle_land(rng, side)
    polygons, cuts = _divide(land)
    outlines = [pixels(land.bend(densify(np.vstack([p, p[:1]])))) for p in polygons]
    outlines = [o for o in outlines if (o.max(0) >= 0).all() and (o.min(0) < side).all()]
    parcel = np.zeros((side, side), np.int32)
    for number, outline in enumerate(outlines):
        cv2.polylines(parcel, [outline], True, number, 3)
    for number, outline in enumerate(outlines):
        cv2.fillPoly(parcel, [outline], number)
    border = np.ones((side, side), np.uint8)
    border[:, 1:] &= parcel[:, 1:] == parcel[:, :-1]
    border[1:] &= parcel[1:] == parcel[:-1]
    edge = np.asarray(cv2.distanceTransform(border, cv2.DIST_L2, 5), np.float32)

    shares = rng.dirichlet([1.1, 0.5, 1.5])
    uses = rng.choice([scene.FOREST, scene.GRASSLAND, scene.CROPLAND], len(outlines), p=shares)
    label = uses.astype(np.uint8)[parcel]
    reach = 14 * FINE + 1
    wooded = cv2.stackBlur((label == scene.FOREST).astype(np.float32), (reach, reach))
    ragged = scene.fractal_noise(rng, side, 26 * FINE, 4)
    label[wooded + 0.16 * ragged > 0.62] = scene.FOREST
    clearing = scene.fractal_noise(rng, side, 50 * FINE, 3) > 2.1
    label[clearing & (label == scene.FOREST)] = scene.GRASSLAND
    for centre in land.places(0.8):
        label[land.blob(centre, rng.uniform(14, 26) * FINE)] = scene.FOREST
    for centre in land.places(0.36):
        label[land.blob(centre, rng.uniform(50, 95) * FINE)] = scene.SEMINATURAL
    if rng.random() < 0.05:
        chosen = rng.integers(len(outlines))
        hedge = cv2.dilate((parcel == chosen).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        label[hedge & (edge < 3.5 * FINE)] = scene.SEMINATURAL

    water = np.zeros((side, side), np.uint8)
    for _ in land.places(0.14):
        cv2.polylines(water, [pixels(_river(land))], False, 1, round(rng.uniform(9, 22) * FINE))
    if water.any():
        bank = cv2.distanceTransform(1 - water, cv2.DIST_L2, 3)
        label[bank < (5 + 4 * ragged) * FINE] = scene.FOREST
    for density, low, high in ((0.16, 50, 130), (0.3, 9, 22)):
        for centre in land.places(density):
            water[land.blob(centre, rng.uniform(low, high) * FINE)] = 1
    label[water > 0] = scene.BACKGROUND
    for centre in land.places(0.12):
        pit = land.blob(centre, rng.uniform(40, 85) * FINE)
        label[pit] = scene.BACKGROUND
        water[pit] = 0
    builder = _Builder(land, label)
    _settle(land, cuts, builder)
    heading = float(np.arctan2(land.axes[0, 1], land.axes[0, 0]))
    grain = scene.fractal_noise(rng, side, 5 * FINE, 3)
    mottle = scene.fractal_noise(rng, side, 60 * FINE, 5)
    built = (builder.roads, builder.plots, builder.buildings)
    return Scene(label, parcel, len(outlines), edge, heading, water > 0, grain, mottle, *built)
