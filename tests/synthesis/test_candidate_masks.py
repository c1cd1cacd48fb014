from collections import Counter

import numpy as np
import pytest
from defaults import defaults
from synthesis_helpers import GEOMETRY, candidate_masks, refused
from torch.utils.data import DataLoader

from geoseg_gan.data.images import resize_label
from geoseg_gan.data.jitter import draw_warp, draw_window, sample_label
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.data.palette import IGNORE
from geoseg_gan.data.scan import scan
from geoseg_gan.data.settings import JitterSettings, TransplantStep
from geoseg_gan.data.transplant import Transplanter

JITTER = defaults(JitterSettings, **GEOMETRY)


@pytest.fixture
def reader(palette):
    return MaskReader(palette)


@pytest.fixture
def index(make_folder, tmp_path, reader):
    return scan(find_pairs(make_folder(tmp_path / "data", size=(64, 72)), "train"), reader)


@pytest.fixture
def candidates(index, reader):
    knobs = {"image_size": 48, "jitter": JITTER, "seed": 4, "pixels": index.pixels}
    return lambda **changes: candidate_masks(index.pairs, reader, **(knobs | changes))


def first(count, candidates):
    return [candidates[number] for number in range(count)]


def assert_same(first, second):
    assert first.to_dict() == second.to_dict()
    np.testing.assert_array_equal(first.label, second.label)


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_a_candidate_follows_from_seed_and_number_alone(candidates, index, reader, fit):
    for number, candidate in enumerate(first(8, candidates(fit=fit))):
        rng = np.random.default_rng((4, number))
        pair = index.pairs[rng.integers(6)]
        label = reader.read(pair.mask)[0]
        label = resize_label(label, 48) if fit == "resize" else label
        warp = draw_warp(JITTER, rng)
        window = draw_window(*warp.shape(*label.shape), 48, rng)
        maps = warp.source_map(*label.shape, window)
        assert (candidate.index, candidate.source) == (number, pair.stem)
        assert (candidate.mask_index, candidate.variant) == (number, 0)
        assert (candidate.warp, candidate.window) == (warp, window)
        np.testing.assert_array_equal(candidate.label, sample_label(label, maps))
        assert candidate.graft is None and candidate.lacks == ()


@pytest.mark.parametrize("variants", [1, 4])
def test_candidates_are_found_by_number_in_any_order(candidates, variants):
    made = candidates(variants=variants)
    for number in (10**6, *np.random.default_rng(0).permutation(40).tolist()):
        assert_same(made[number], candidates(variants=variants)[number])


def test_candidates_in_a_row_show_the_mask_of_their_number(candidates):
    plain = candidates()
    for number, candidate in enumerate(first(20, candidates(variants=3))):
        assert candidate.index == number
        assert (candidate.mask_index, candidate.variant) == divmod(number, 3)
        same = plain[number // 3]
        assert (candidate.source, candidate.warp) == (same.source, same.warp)
        assert candidate.window == same.window
        np.testing.assert_array_equal(candidate.label, same.label)


def test_a_mask_is_drawn_once_for_variants_in_a_row(candidates, reader, monkeypatch):
    read, opened = MaskReader.read, []
    monkeypatch.setattr(MaskReader, "read", lambda *a: opened.append(a[1]) or read(*a))
    assert len(first(10, candidates(variants=4))) == 10
    assert len(opened) == 3


def test_masks_are_drawn_by_their_weights(candidates, index):
    weights = np.array([0.5, 0, 0.3, 0, 0.2, 0])
    drawn = Counter(c.source for c in first(400, candidates(sampling=weights)))
    shares = [drawn[pair.stem] / 400 for pair in index.pairs]
    assert [share == 0 for share in shares] == [False, True] * 3
    assert shares == pytest.approx(weights, abs=0.07)
    # Weights leave the geometry as it is drawn for each mask and number.
    only = np.eye(6)[2]
    one, other = candidates(sampling=only), candidates(sampling=only, seed=5)
    assert {candidate.source for candidate in first(10, one)} == {"train_002"}
    assert one[0].to_dict() == candidates(sampling=only)[0].to_dict() != other[0].to_dict()


@pytest.fixture
def corner(tmp_path, make_folder, reader):
    """Six masks, of which two hold a patch of class 2: in the middle, or in a far corner."""
    root = make_folder(tmp_path / "corner", train=6, size=96)
    pairs = find_pairs(root, "train")
    for number, pair in enumerate(pairs):
        label = np.full((96, 96), number % 2, np.uint8)
        if number == 1:
            label[40:56, 40:56] = 2
        if number == 4:
            label[0, 0] = 2
        reader.write(pair.mask, label)
    return scan(pairs, reader)


def test_only_masks_that_hold_a_required_class_are_drawn_until_it_is_seen(corner, reader):
    made = candidate_masks(corner.pairs, reader, required=[2], pixels=corner.pixels)
    seen, lacking = Counter(), Counter()
    for candidate in first(60, made):
        assert ((candidate.label == 2).any()) == (candidate.lacks == ())
        seen[candidate.source] += 1
        lacking[candidate.source] += candidate.lacks == ("Settlement",)
    assert set(seen) == {"train_001", "train_004"} and min(seen.values()) > 15
    assert lacking["train_001"] == 0  # about half of all windows show it
    assert lacking["train_004"] == seen["train_004"]  # one window in 4225 does


def test_the_first_geometry_that_shows_the_classes_is_taken(candidates):
    plain, required = candidates(), candidates(required=[1, 2])
    for number in range(20):  # every mask holds all classes, so the same ones are drawn
        drawn, taken = plain[number], required[number]
        if {1, 2} <= set(np.unique(drawn.label)):
            assert_same(taken, drawn)
        else:
            assert taken.warp != drawn.warp or taken.window != drawn.window


def test_required_classes_and_weights_act_together(candidates, index):
    pixels = index.pixels.copy()
    pixels[[0, 1, 2], 2] = 0
    weights = np.array([0.4, 0.2, 0, 0.3, 0.1, 0])
    made = candidates(sampling=weights, required=[2], pixels=pixels)
    drawn = Counter(candidate.source for candidate in first(400, made))
    assert set(drawn) == {"train_003", "train_004"}
    assert drawn["train_003"] / 400 == pytest.approx(0.75, abs=0.07)
    with refused("no training mask that may be drawn holds Settlement"):
        candidates(sampling=np.eye(6)[1], required=[2], pixels=pixels)


def test_classes_that_no_mask_holds_together_are_refused_by_name(candidates, index):
    pixels = index.pixels.copy()
    pixels[:3, 1] = pixels[3:, 2] = 0
    assert candidates(required=[1], pixels=pixels)[0].source > "train_002"
    with refused(r"require_classes: .* mask .* holds Forest land and Settlement\. Require"):
        candidates(required=[1, 2], pixels=pixels)


@pytest.fixture
def transplanter(index, reader):
    return lambda p: Transplanter.of_masks(defaults(TransplantStep, p, min_pixels=8), index, reader)


def test_a_transplanter_that_never_acts_changes_nothing(candidates, transplanter):
    plain, same = candidates(), candidates(transplanter=transplanter(0.0))
    for number in range(40):
        assert_same(plain[number], same[number])


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_regions_are_pasted_before_the_geometry_acts(candidates, index, reader, transplanter, fit):
    masks = {pair.stem: reader.read(pair.mask)[0] for pair in index.pairs}
    grafted = 0
    made = first(40, candidates(fit=fit, transplanter=transplanter(1.0)))
    for plain, candidate in zip(first(40, candidates(fit=fit)), made, strict=True):
        assert (candidate.source, candidate.warp) == (plain.source, plain.warp)
        assert candidate.window == plain.window
        label = masks[candidate.source]
        if candidate.graft is not None:
            label = candidate.graft.apply(label)
            grafted += 1
        label = resize_label(label, 48) if fit == "resize" else label
        maps = plain.warp.source_map(*label.shape, plain.window)
        np.testing.assert_array_equal(candidate.label, sample_label(label, maps))
        np.testing.assert_array_equal(candidate.label == IGNORE, plain.label == IGNORE)
    assert grafted > 10


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("variants", [1, 3])
def test_loader_processes_draw_the_same_candidates(candidates, transplanter, variants):
    made = candidates(transplanter=transplanter(1.0), required=[2], variants=variants)
    batches = [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    loader = DataLoader(made, batch_sampler=batches, num_workers=2, collate_fn=list)
    loaded = [candidate for batch in loader for candidate in batch]
    for candidate, expected in zip(loaded, first(9, made), strict=True):
        assert_same(candidate, expected)
