import json
import re
import shutil
import warnings

import numpy as np
import pytest

from geoseg_gan.data.images import write_image
from geoseg_gan.data.pairs import DataError
from geoseg_gan.data.palette import Palette, PaletteClass
from geoseg_gan.data.synthetic import GENERATION, check_synthetic, read_synthetic, refuse_synthetic
from geoseg_gan.utils.errors import UserError


@pytest.fixture
def generated(tmp_path, make_generated):
    return make_generated(tmp_path / "synthetic", [0, 3, 12])


def rewrite(folder, **changes):
    facts = json.loads((folder / GENERATION).read_text())
    (folder / GENERATION).write_text(json.dumps(facts | changes))


@pytest.mark.parametrize("layout", ["pairs", "folders"])
@pytest.mark.parametrize("mask_format", ["rgb", "index"])
def test_a_generated_folder_tells_its_pairs_and_how_to_read_them(
    tmp_path, make_generated, palette, layout, mask_format
):
    form = {"layout": layout, "mask_format": mask_format, "gsd": 0.5}
    folder = make_generated(tmp_path / "made", [0, 3, 12], **form)
    facts = read_synthetic(folder)
    assert facts.folder == folder and facts.palette == palette
    assert (facts.layout, facts.mask_format) == (layout, mask_format)
    assert (facts.image_size, facts.gsd) == (32, 0.5)
    stems = [pair.stem for pair in facts.pairs]
    assert stems == ["pair_00000", "pair_00003", "pair_00012"]
    assert [pair.group for pair in facts.pairs] == stems
    for pair in facts.pairs:
        assert pair.image.is_file() and set(np.unique(facts.reader().read(pair.mask)[0])) == {1, 2}


def test_only_pairs_count_as_pairs_of_however_many_bands(generated, make_generated):
    write_image(generated / "contact_sheet.png", np.zeros((8, 8, 3), np.uint8))
    (generated / "pair_00000_img.txt").write_text("a note")
    make_generated(generated, [14], bands=5, dtype="uint16")
    images = [pair.image.name for pair in read_synthetic(generated).pairs]
    assert len(images) == 4 and images[-1] == "pair_00014_img.tif"


NO_PAIRS = "holds no pairs: .*the filter kept none.*lower tau"
SPOILT = r"generation\.json (cannot be read|holds what is|lacks|has) .* again\."


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: (f / GENERATION).unlink(),
            r"holds no generation\.json\. Give one that",
        ),
        (shutil.rmtree, "synthetic=.* is not there. Give one that"),
        (lambda f: (f / GENERATION).write_text("not json"), SPOILT),
        (lambda f: (f / GENERATION).write_text("[]"), SPOILT),
        (lambda f: (f / GENERATION).write_text("{}"), SPOILT),
        (lambda f: rewrite(f, mask_format="other"), SPOILT),
        (lambda f: rewrite(f, config={"layout": "other"}), SPOILT),
        (lambda f: rewrite(f, gsd="far"), r"has 'gsd', which is 'far', not a number from 0 to"),
        (lambda f: rewrite(f, image_size=10**9), "has 'image_size', which is 1000000000, not"),
        (lambda f: rewrite(f, palette={"classes": []}), "lacks 'palette.ignore'"),
        (lambda f: rewrite(f, palette={"classes": [], "ignore": []}), "0 classes; it needs 2"),
        (lambda f: (f / GENERATION).write_bytes(b"\xff" * 9), "cannot be read"),
        (lambda f: (f / GENERATION).write_text("[" * 10**5), "cannot be read .*nested too deeply"),
        (lambda f: rewrite(f, config={"layout": "folders", "data_root": "data"}), NO_PAIRS),
        (lambda f: [path.unlink() for path in f.glob("pair_*")], NO_PAIRS),
        (lambda f: (f / "pair_00003_img.jpg").unlink(), "pair_00003 has no image. Repeat the"),
        (lambda f: (f / "pair_00003_mask.png").unlink(), "pair_00003 has no mask. Repeat the"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(generated, spoil, message):
    spoil(generated)
    with pytest.raises(UserError, match=message):
        read_synthetic(generated)


def list_pairs(folder, kept):
    lines = [json.dumps({"index": index, "kept": keep}) + "\n" for index, keep in kept.items()]
    (folder / "manifest.jsonl").write_text("".join(lines))


@pytest.mark.parametrize("layout", ["pairs", "folders"])
def test_pairs_that_the_manifest_does_not_keep_are_left_out(tmp_path, make_generated, layout):
    folder = make_generated(tmp_path / "made", [0, 3, 12], layout=layout)
    list_pairs(folder, {0: True, 1: False, 3: False, 12: True})
    assert [pair.stem for pair in read_synthetic(folder).pairs] == ["pair_00000", "pair_00012"]
    every = read_synthetic(folder, "save_dir", dropped_too=True).pairs
    assert [pair.stem for pair in every] == ["pair_00000", "pair_00003", "pair_00012"]
    list_pairs(folder, dict.fromkeys((0, 3, 12), False))
    with pytest.raises(DataError, match=r"holds no pairs: .*all were dropped by hand"):
        read_synthetic(folder)


def test_a_damaged_manifest_is_refused_since_it_says_what_is_dropped(generated):
    (generated / "manifest.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match=r"line 1, cannot be read .* generate into a new folder"):
        read_synthetic(generated)


def test_a_folder_of_the_same_classes_passes_in_silence(generated, palette):
    facts = read_synthetic(generated)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_synthetic(facts, palette, 0.5)
        check_synthetic(facts, Palette(palette.classes, [[1, 1, 1], [0, 0, 0]]), None)


WATER = PaletteClass("Water", [0, 0, 255])


@pytest.mark.parametrize(
    "change",
    [
        lambda classes: classes[:2],
        lambda classes: [*classes, WATER],
        lambda classes: [classes[1], classes[0], classes[2]],
        lambda classes: [*classes[:2], PaletteClass("Settlement", [1, 2, 3])],
        lambda classes: [*classes[:2], PaletteClass("Town", [255, 214, 33])],
    ],
)
def test_a_folder_of_other_classes_is_refused_with_both_shown(generated, palette, change):
    other = Palette(change(list(palette.classes)), palette.ignore)
    with pytest.raises(DataError) as caught:
        check_synthetic(read_synthetic(generated), other, None)
    message = str(caught.value)
    assert f"synthetic={generated} holds 3 classes ('Background' (250, 62, 119)" in message
    ours = ", ".join(other.describe(label) for label in range(other.num_classes))
    assert f"data.palette has {other.num_classes} ({ours})" in message


@pytest.mark.parametrize(
    ("gsd", "differs"), [(0.5, False), (0.504, False), (0.506, True), (2, True)]
)
def test_another_resolution_is_a_warning_with_both_shown(
    tmp_path, make_generated, palette, gsd, differs
):
    facts = read_synthetic(make_generated(tmp_path / "made", [0], gsd=gsd))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_synthetic(facts, palette, 0.5)
    assert len(caught) == differs
    if differs:
        assert f"shows {gsd:g} metres a pixel, but data.gsd=0.5" in str(caught[0].message)


def test_real_folders_pass(make_folder, tmp_path):
    refuse_synthetic(make_folder(tmp_path / "data", size=32))
    refuse_synthetic(tmp_path / "nothing")


@pytest.mark.parametrize("where", ["", "train", "val"])
@pytest.mark.parametrize("layout", ["pairs", "folders"])
def test_generated_pairs_as_real_data_are_refused(tmp_path, make_generated, where, layout):
    root = tmp_path / "data"
    make_generated(root / where, [0], layout=layout)
    with pytest.raises(DataError, match=re.escape(f"{root / where} holds generated pairs")):
        refuse_synthetic(root)


@pytest.mark.parametrize("linked", ["val", "val/images", "train/masks"])
def test_links_to_generated_pairs_are_refused(make_folder, tmp_path, make_generated, linked):
    root = make_folder(tmp_path / "data", val=0, size=32)
    made = make_generated(tmp_path / "made", [0], layout="folders")
    link = root / linked
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        link.rename(tmp_path / "moved")
    link.symlink_to(made if linked == "val" else made / link.name, target_is_directory=True)
    with pytest.raises(DataError, match=re.escape(f"{link} holds generated pairs")):
        refuse_synthetic(root)
