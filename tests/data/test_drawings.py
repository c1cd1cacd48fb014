"""Burnt drawings of LabelMe, COCO and CVAT against pixels that were worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from defaults import defaults
from PIL import Image
from shapes import DATA, READER, SHAPES, burnt, coco, labelme, ring, without_hole, write

from geoseg_gan.data.settings import TileSettings
from geoseg_gan.data.tile import tile
from geoseg_gan.utils.errors import UserError


def cvat(*shapes, name="photos/a.png", extra=""):
    drawn = "".join(shapes)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f'<meta><task><name>t</name></task></meta>{extra}<image id="0" name="{name}" width="48" '
        f'height="32"><tag label="sunny" source="manual"></tag>{drawn}</image></annotations>'
    )


def cvat_polygon(label, points, order=0):
    listed = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return (
        f'<polygon label="{label}" source="manual" occluded="0" points="{listed}" '
        f'z_order="{order}"><attribute name="age">3</attribute></polygon>'
    )


BOX = '<box label="road" occluded="0" xtl="3.75" ytl="1.75" xbr="20.25" ybr="18.25" z_order="{}"/>'
# Columns 16 to 29 of a box that is 16 wide: runs of 0 and 1 in turn, along its rows.
RLE = (
    '<mask label="wood" source="auto" rle="0, 14, 2, 14, 2, 14, 2, 14, 2" left="16" top="2" '
    'width="16" height="4" z_order="{}"/>'
)


@pytest.mark.parametrize("order", [(0, 0, 0), (1, 2, 0), (-3, 0, -7)])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_what_was_drawn_in_cvat_is_burnt_from_the_lowest_on(source, tmp_path, order, is_mixed):
    shapes = [cvat_polygon(n, r[0][:4], o) for (n, r), o in zip(SHAPES, order, strict=True)]
    if is_mixed:
        shapes[:2] = [BOX.format(order[0]), RLE.format(order[1])]
    path = tmp_path / "annotations.xml"
    path.write_text(cvat(*shapes))
    np.testing.assert_array_equal(burnt(source, path, "water", None), without_hole(0))


def test_a_turned_box_of_cvat_is_burnt(source, tmp_path):
    box = '<box label="road" xtl="10" ytl="10" xbr="30" ybr="14" rotation="90.00" z_order="0"/>'
    (tmp_path / "a.xml").write_text(cvat(box))
    label = np.zeros((32, 48), np.uint8)
    label[2:22, 18:22] = 1  # about its middle, at (20, 12)
    np.testing.assert_array_equal(burnt(source, tmp_path / "a.xml", "water", None), label)


def run_lengths(mask):
    """COCO's, down the columns, beginning with those of 0."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends, len(flat)]).tolist()
    return lengths if flat[0] == 0 else [0, *lengths]


def packed(lengths):
    """As COCO's C code packs them: differences to the last but one, 5 bits a character."""
    text = ""
    for n, length in enumerate(lengths):
        value = length - lengths[n - 2] if n > 2 else length
        while True:
            low, value = value & 31, value >> 5
            done = value == (-1 if low & 16 else 0)
            text += chr(48 + (low if done else low | 32))
            if done:
                break
    return text


def test_cocos_text_of_run_lengths_is_as_published():
    """What pycocotools gives for the mask of these runs."""
    assert packed([6, 1, 40, 4, 5, 4, 5, 4, 21]) == "61X13mN000`0"


@pytest.mark.parametrize("pack", [list, packed])
@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_of_coco_cover_the_same_pixels(source, tmp_path, pack, seed):
    mask = (np.random.default_rng(seed).random((32, 48)) < (0.5, 0.03, 0.97)[seed]).astype(int)
    content = coco()
    segmentation = {"counts": pack(run_lengths(mask)), "size": [32, 48]}
    content["annotations"] = [{
        "id": 1, "image_id": 7, "category_id": 3, "iscrowd": 1, "segmentation": segmentation,
    }]  # fmt: skip
    path = write(tmp_path / "a.json", content)
    np.testing.assert_array_equal(burnt(source, path, "water", None), mask)


@pytest.mark.parametrize("content", [labelme(), coco()], ids=["LabelMe", "COCO"])
def test_polygons_in_pixels_are_burnt(source, tmp_path, content):
    found = burnt(source, write(tmp_path / "a.json", content), "water", None)
    np.testing.assert_array_equal(found, without_hole(0))


def test_rectangles_of_a_folder_of_labelme(source, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    shape = {"label": "wood", "points": [[30.2, 20.1], [10.4, 5.9]], "shape_type": "rectangle"}
    write(folder / "a.json", labelme([]) | {"shapes": [shape]})
    label = np.zeros((32, 48), np.uint8)
    label[6:20, 10:30] = 2
    np.testing.assert_array_equal(burnt(source, folder, "water"), label)


def test_pictures_of_any_format_match_polygons_by_name(source, tmp_path):
    for path in (source / "images").iterdir():
        path.unlink()
    for stem in "ab":
        Image.new("RGB", (48, 32), (9, 9, 9)).save(source / "images" / f"{stem}.jpg")
    path = write(tmp_path / "all.json", coco())
    settings = defaults(
        TileSettings, source=str(source), data_root=str(tmp_path / "out"), tile_size=32, data=DATA,
        masks=str(path), background="road", val_groups=["b"],
    )  # fmt: skip
    with pytest.raises(UserError, match=r"b\.jpg is not in .*all\.json, which has 1 pictures"):
        tile(settings)
    content = coco()
    content["images"].append({"id": 8, "file_name": "c\\b.jpg", "height": 32, "width": 48})
    write(path, content)
    with pytest.warns(UserWarning, match="val has no pixel"):
        tile(settings)
    np.testing.assert_array_equal(
        READER.read(tmp_path / "out" / "train" / "masks" / "a_r00_c00.png")[0],
        without_hole(1)[:, :32],
    )
    content["images"][1]["height"] = 31
    write(path, content)
    with pytest.raises(UserError, match=r"b\.jpg is 48x32, but .* has polygons of it at 48x31"):
        tile(replace(settings, data_root=str(tmp_path / "other")))


WRONG_PIXELS = {
    "neither": ({"images": []}, "lacks 'categories'. Give COCO's or LabelMe's"),
    "circle": (
        labelme([]) | {"shapes": [{"label": "road", "points": [[1, 1], [2, 2]],
            "shape_type": "circle"}]}, "shape 1 is a circle. Only polygons",
    ),
    "two points": (labelme([("road", [[[1, 1], [2, 2]]])]), "fewer than three points"),
    "unknown label": (labelme([("sea", [ring(1, 1, 9, 9)])]), "sea' is not a class"),
    "damaged run lengths": (
        coco() | {"annotations": [{"image_id": 7, "category_id": 1,
            "segmentation": {"counts": "a", "size": [32, 48]}}]}, "whose runs do not fill it",
    ),
    "run lengths of another size": (
        coco() | {"annotations": [{"image_id": 7, "category_id": 1,
            "segmentation": {"counts": [9, 9], "size": [3, 6]}}]}, "another size than its image",
    ),
    "a box alone": (
        coco() | {"annotations": [{"image_id": 7, "category_id": 1,
            "segmentation": []}]}, "1 has no segmentation. Export polygons or masks, not boxes",
    ),
    "no such image": (
        coco() | {"annotations": [{"image_id": 8, "category_id": 1}]}, "does not list",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG_PIXELS.values(), ids=WRONG_PIXELS)
def test_what_labelme_and_coco_do_not_write_is_one_line(source, tmp_path, content, message):
    path = write(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=message) as error:
        burnt(source, path)
    assert str(error.value).count("\n") == 0


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]>'
WRONG_CVAT = {
    "entities": (cvat().replace("<annotations>", BOMB + "<annotations>"), "document type a"),
    "a foreign file": (
        '<!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]><a>&b;</a>', "document type a",
    ),
    "entities in UTF-16": (
        (f'<?xml version="1.0" encoding="utf-16"?>{BOMB}<a>&c;</a>').encode("utf-16"),
        "declares the document type a",
    ),
    "cut": (cvat()[:-9], "cannot be read"),
    "video": ("<annotations><track id='0' label='road'/></annotations>", "'CVAT for images'"),
    "ellipse": (cvat('<ellipse label="road" cx="1" cy="2" rx="3" ry="4"/>'), "1 is a ellipse"),
    "other class": (cvat(cvat_polygon("sea", [(1, 1), (2, 2), (3, 1)])), "'sea' is not a class"),
    "no numbers": (cvat('<polygon label="road" points="a,b;c,d;e,f"/>'), "are no numbers"),
    "no points": (cvat('<polygon label="road"/>'), "lacks 'points'"),
    "infinite": (cvat('<polygon label="road" points="1,1;inf,2;3,3"/>'), "shape 1 "),
    "huge mask": (
        cvat('<mask label="road" rle="0,4" left="0" top="0" width="99999" height="99999"/>'),
        "99,999 x 99,999 pixels",
    ),
    "runs too short": (
        cvat('<mask label="road" rle="0,4" left="0" top="0" width="9" height="9"/>'), "fill it",
    ),
    "negative runs": (
        cvat('<mask label="road" rle="-1,5" left="0" top="0" width="2" height="2"/>'), "fill it",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG_CVAT.values(), ids=WRONG_CVAT)
def test_what_cvat_does_not_export_is_one_line(source, tmp_path, content, message):
    path = tmp_path / "annotations.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        burnt(source, path, "water", None)
    assert str(error.value).count("\n") == 0 and "annotations.xml" in str(error.value)


def test_masks_that_cvat_exports_as_pictures_are_explained(source, tmp_path):
    folder = tmp_path / "export"
    (folder / "SegmentationClass").mkdir(parents=True)
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,0::\n"
    )
    wanted = (
        r"labelmap\.txt is of CVAT's export of masks.*SegmentationClass.*"
        r"\"data\.palette=\[{name: 'background', color: \[0,0,0\]},{name: 'road', "
        r"color: \[128,64,0\]}\]\" \"data\.ignore=\[\]\""
    )
    with pytest.raises(UserError, match=wanted):
        burnt(source, folder / "SegmentationClass")
    settings = defaults(
        TileSettings, source=str(folder), data_root=str(tmp_path / "out"), data=DATA
    )
    with pytest.raises(UserError, match=wanted):
        tile(settings)


def test_ids_of_coco_are_unique(source, tmp_path):
    for kind in ("images", "categories"):
        content = coco()
        content[kind].append(content[kind][0] | {"file_name": "b.png", "name": "water"})
        path = write(tmp_path / "a.json", content)
        with pytest.raises(UserError, match=rf"has the id [17] twice in '{kind}'"):
            burnt(source, path)


def test_positions_and_runs_beyond_all_floats_are_one_line(source, tmp_path):
    vast = int("9" * 400)
    path = write(tmp_path / "a.json", labelme([("road", [[[vast, 1], [2, 2], [3, 1]]])]))
    with pytest.raises(UserError, match=r"a\.json has 'shapes\[0\]\.points"):
        burnt(source, path)
    path = tmp_path / "a.xml"
    path.write_text(cvat(RLE.format(0).replace('rle="0, 14', f'rle="0, {vast}')))
    with pytest.raises(UserError, match="whose runs do not fill it"):
        burnt(source, path)
