"""Polygons, boxes and masks that were drawn on pictures: LabelMe, COCO, CVAT."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from rasterio import Affine
from rasterio.features import shapes

from geoseg_gan.data.image_files import check_size, without_place
from geoseg_gan.data.pairs import DataError, export_advice, normal
from geoseg_gan.data.polygons import POSITION, ClassLabels, Drawing, Polygon, Rings, check_ring
from geoseg_gan.utils.reading import TEXT, check_content, read_bytes, read_json, whole

DRAWING_SUFFIXES = (".json", ".xml")
_SIDES = {"width": whole(1), "height": whole(1)}
_LABELME = {
    "shapes": [{"label": str, "points": [POSITION], "shape_type?": (str, None)}],
    "imageWidth": whole(1),
    "imageHeight": whole(1),
}
_COCO = {
    "images": [{"id": (whole(), str), "file_name": str, **_SIDES}],
    "categories": [{"id": whole(), "name": str}],
    "annotations": [{"image_id": (whole(), str), "category_id": whole(), "segmentation?": object}],
}
_RUNS = {"counts": (str, [whole()]), "size": [whole(1)]}
_JSON_ADVICE = "Give COCO's or LabelMe's JSON, or GeoJSON as .geojson."
_XML_ADVICE = "Export it from CVAT as 'CVAT for images'."
_SHAPE = {"label": str, "z_order?": whole(-(2**31))}
_CVAT = {
    "image": {"name": str, **_SIDES},
    "polygon": {**_SHAPE, "points": str},
    "box": {
        **_SHAPE, **dict.fromkeys(("xtl", "ytl", "xbr", "ybr", "rotation?"), POSITION[0]),
    },
    "mask": {
        **_SHAPE, "rle": str, "left": whole(), "top": whole(), **_SIDES,
    },
}  # fmt: skip
"""The attributes of CVAT's elements that are read; those of another type than text are numbers."""


def read_drawings(path: Path, labels: ClassLabels) -> dict[str, Drawing]:
    """Reads what was drawn on pictures, by the stem of each picture.

    Args:
        path: A .json of LabelMe or COCO, an .xml of CVAT, or a folder of LabelMe's files.
        labels: The classes.

    Raises:
        UserError: If it is none of these, or what was drawn covers no pixels.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".json")
        if not files:
            advice = export_advice(path)
            raise DataError(f"masks={path} is a folder without LabelMe's .json files.{advice}")
        return {normal(file.stem): _read_labelme(file, labels) for file in files}
    if path.suffix.lower() == ".xml":
        return _read_cvat(path, labels)
    content = read_json(path, dict, _JSON_ADVICE)
    if "shapes" in content:
        return {normal(path.stem): _read_labelme(path, labels)}
    return _read_coco(path, content, labels)


def _read_labelme(path: Path, labels: ClassLabels) -> Drawing:
    """The polygons and rectangles of one of LabelMe's files."""
    content = read_json(path, _LABELME, "Save it with LabelMe, which gives each picture a file.")
    polygons = []
    for number, shape in enumerate(content["shapes"], 1):
        where, points = f"{path}: shape {number}", shape["points"]
        kind = shape.get("shape_type") or "polygon"
        if kind == "rectangle" and len(points) == 2 and min(map(len, points)) >= 2:
            ring = _rectangle(*points[0][:2], *points[1][:2])
        elif kind == "polygon":
            ring = points
            check_ring(ring, where)
        else:
            raise DataError(f"{where} is a {kind}. Only polygons and rectangles are read.")
        polygons.append(Polygon([ring], labels.of(shape["label"], where)))
    return Drawing(polygons, content["imageHeight"], content["imageWidth"])


def _read_coco(path: Path, content: Any, labels: ClassLabels) -> dict[str, Drawing]:
    check_content(path, content, _COCO, _JSON_ADVICE)
    for kind in ("images", "categories"):
        known = set()
        for entry in content[kind]:
            if entry["id"] in known:
                raise DataError(
                    f"{path} has the id {entry['id']} twice in '{kind}'. Give each one of its own."
                )
            known.add(entry["id"])
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    drawings: dict[str, Drawing] = {}
    of_image: dict[int | str, Drawing] = {}
    for image in content["images"]:
        drawing = Drawing([], image["height"], image["width"])
        of_image[image["id"]] = drawing
        _add(drawings, image["file_name"], drawing, path)
    for number, annotation in enumerate(content["annotations"], 1):
        where = f"{path}: annotation {number}"
        if annotation["image_id"] not in of_image or annotation["category_id"] not in names:
            raise DataError(f"{where} is of an image or a category that the file does not list.")
        drawing = of_image[annotation["image_id"]]
        label = labels.of(names[annotation["category_id"]], where)
        outlines = annotation.get("segmentation")
        if not outlines:
            raise DataError(f"{where} has no segmentation. Export polygons or masks, not boxes.")
        if isinstance(outlines, dict):
            check_content(where, outlines, _RUNS | {"*": object}, _JSON_ADVICE)
            if outlines["size"] != [drawing.height, drawing.width]:
                raise DataError(f"{where} has a mask of another size than its image. Export again.")
            counts = outlines["counts"]
            runs = _unpacked(counts, where) if isinstance(counts, str) else counts
            check_size(where, drawing.height, drawing.width, 4)
            # COCO goes down the columns.
            mask = _filled(runs, drawing.width, drawing.height, where).T
            drawing.polygons.extend(_outlines(mask, 0, 0, label))
            continue
        check_content(where, {"segmentation": outlines}, {"segmentation": [POSITION]}, _JSON_ADVICE)
        for outline in outlines:
            ring: list[Sequence[float]] = list(zip(outline[::2], outline[1::2], strict=False))
            check_ring(ring, where)
            drawing.polygons.append(Polygon([ring], label))
    return drawings


def _read_cvat(path: Path, labels: ClassLabels) -> dict[str, Drawing]:
    """The polygons, boxes and masks of 'CVAT for images 1.1', in their order from the bottom."""
    parser = ElementTree.XMLParser(target=_Plain())  # declares no entities
    try:
        parser.feed(read_bytes(path, TEXT))
        root = parser.close()
    except (ValueError, ElementTree.ParseError) as error:
        raise DataError(f"{path} cannot be read ({error}). {_XML_ADVICE}") from None
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        raise DataError(f"{path} lists no images. {_XML_ADVICE}")
    drawings: dict[str, Drawing] = {}
    for image in images:
        about = _attributes(image, f"{path}: an image")
        where = f"{path}: {about['name']}"
        found = []
        for number, shape in enumerate((s for s in image if s.tag != "tag"), 1):
            spot = f"{where}: shape {number}"
            if shape.tag not in _CVAT:
                raise DataError(f"{spot} is a {shape.tag}. Only polygons, boxes, masks are read.")
            values = _attributes(shape, spot)
            label = labels.of(values["label"], spot)
            found.append((values.get("z_order", 0), _of_shape(shape.tag, values, label, spot)))
        found.sort(key=lambda entry: entry[0])  # those of one order stay as they were drawn
        polygons = [polygon for _, some in found for polygon in some]
        drawing = Drawing(polygons, about["height"], about["width"])
        _add(drawings, about["name"], drawing, path)
    return drawings


class _Plain(ElementTree.TreeBuilder):
    """Builds the tree of an XML file that declares no document type, and so no entities."""

    def doctype(self, name: str, *_: Any) -> None:
        raise ValueError(f"it declares the document type {name}")


def _attributes(element: Any, where: str) -> dict[str, Any]:
    """The attributes of one of CVAT's elements, checked."""
    shape: Mapping[str, Any] = _CVAT[element.tag]
    values: dict[str, Any] = {}
    for key, kind in shape.items():
        name = key.removesuffix("?")
        if name not in element.attrib:
            continue
        text = element.attrib[name]
        if kind is str:
            values[name] = text
            continue
        (values[name],) = _numbers(text, where, int if kind.whole else float)
    check_content(where, values, shape, _XML_ADVICE)
    return values


def _numbers(text: str, where: str, kind: type = float) -> list[Any]:
    """Numbers that commas divide."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise DataError(f"{where}: '{text[:20]}' are no numbers. {_XML_ADVICE}") from None


def _of_shape(kind: str, values: dict[str, Any], label: int, where: str) -> list[Polygon]:
    """The polygons of one of CVAT's shapes."""
    if kind == "mask":
        check_size(where, values["height"], values["width"], 4)
        runs = _numbers(values["rle"], where, int)
        mask = _filled(runs, values["height"], values["width"], where)
        return _outlines(mask, values["left"], values["top"], label)
    ring: list[Sequence[float]]
    if kind == "polygon":
        ring = [_numbers(point, where) for point in values["points"].split(";")]
        check_content(where, ring, [POSITION], _XML_ADVICE)
        check_ring(ring, where)
    else:
        left, top, right, bottom = (values[name] for name in ("xtl", "ytl", "xbr", "ybr"))
        ring = _rectangle(left, top, right, bottom, values.get("rotation", 0.0))
    return [Polygon([ring], label)]


def _rectangle(
    left: float, top: float, right: float, bottom: float, degrees: float = 0.0
) -> list[Sequence[float]]:
    """A rectangle, turned clockwise about its middle."""
    x, y, angle = (left + right) / 2, (top + bottom) / 2, math.radians(degrees)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    if not degrees:
        return list(corners)
    along, across = math.cos(angle), math.sin(angle)
    return [
        (x + (u - x) * along - (v - y) * across, y + (u - x) * across + (v - y) * along)
        for u, v in corners
    ]


def _filled(runs: Sequence[int], height: int, width: int, where: str) -> npt.NDArray[np.uint8]:
    """The mask (H, W) of lengths of runs along its rows, of 0 and 1 in turn."""
    size = height * width
    if any(not 0 <= run <= size for run in runs) or sum(runs) != size:
        raise DataError(f"{where} has a mask whose runs do not fill it. Export it again.")
    values = np.arange(len(runs)) % 2
    return values.astype(np.uint8).repeat(runs).reshape(height, width)


def _unpacked(text: str, where: str) -> list[int]:
    """The lengths of runs out of COCO's text: 5 bits a character, the third on as differences."""
    runs: list[int] = []
    value, shift = 0, 0
    for code in text.encode():
        if not 48 <= code < 112 or shift > 40:
            raise DataError(f"{where} has a damaged run-length code. Export it again.")
        value |= ((code - 48) & 31) << shift
        shift += 5
        if not (code - 48) & 32:  # the last character of a number, whose highest bit is its sign
            if (code - 48) & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs


def _outlines(mask: npt.NDArray[np.uint8], left: int, top: int, label: int) -> list[Polygon]:
    """Polygons along the edges of a mask's pixels, which cover just these."""
    with without_place():
        found: Iterator[tuple[dict[str, Any], float]] = shapes(
            np.ascontiguousarray(mask), mask > 0, transform=Affine.translation(left, top)
        )
        rings: list[Rings] = [geometry["coordinates"] for geometry, _ in found]
    return [Polygon(outline, label) for outline in rings]


def _add(drawings: dict[str, Drawing], name: str, drawing: Drawing, path: Path) -> None:
    """Notes what was drawn on a picture by the stem of its name, which may stand after folders."""
    stem = normal(PureWindowsPath(name).stem)  # which knows both kinds of slashes
    if stem in drawings:
        raise DataError(f"{path} has two pictures '{stem}'. Export the folders one by one.")
    drawings[stem] = drawing
