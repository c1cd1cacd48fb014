from collections import Counter

import numpy as np
import pytest

from geoseg_gan.data.sampler import EpochSampler, Focus, batches_per_epoch


def draws(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_shows_every_pair_once_in_numpys_permutation():
    sampler = EpochSampler(12, 4, seed=5)
    for epoch in range(2):
        order = draws(sampler, epoch)
        expected = np.random.default_rng((5, epoch)).permutation(12)
        assert [draw.row for draw in order] == expected.tolist() and len(sampler) == 12
        assert [draw.serial for draw in order] == list(range(12 * epoch, 12 * epoch + 12))


def test_an_epoch_is_a_whole_number_of_batches():
    sampler = EpochSampler(11, 4, seed=0)
    shown = [{draw.row for draw in draws(sampler, epoch)} for epoch in range(40)]
    assert {len(rows) for rows in shown} == {8}
    assert set.intersection(*shown) == set()  # others are left out each time


def test_with_fewer_pairs_than_a_batch_pairs_repeat_evenly():
    sampler = EpochSampler(3, 8, seed=0)
    order = draws(sampler)
    assert len(order) == len(sampler) == 8
    counts = Counter(draw.row for draw in order)
    assert sorted(counts.values()) == [2, 3, 3] and set(counts) == {0, 1, 2}
    assert len({draw.serial for draw in order}) == 8  # each repeat under its own warp
    few = rows(mixed(synthetic=4))
    counts = Counter(few[few >= 40].tolist())
    assert sorted(counts.values()) == [2, 2, 3, 3] and set(counts) == {40, 41, 42, 43}


@pytest.mark.parametrize("length", [3, 17, 24])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batches_of_a_single_process(length, world):
    single = draws(EpochSampler(length, 8, seed=5), 2)
    ranks = [EpochSampler(length, 8, 5, rank, world) for rank in range(world)]
    parts = [draws(sampler, 2) for sampler in ranks]
    assert all(len(part) == len(sampler) for part, sampler in zip(parts, ranks, strict=True))
    share = 8 // world
    together = [
        draw
        for start in range(0, len(parts[0]), share)
        for part in parts
        for draw in part[start : start + share]
    ]
    assert together == single


@pytest.mark.parametrize(("length", "expected"), [(3, 1), (8, 1), (17, 2), (24, 3)])
def test_an_epoch_is_as_many_batches_as_the_pairs_fill_or_as_many_as_asked(length, expected):
    assert batches_per_epoch(length, 8) == expected
    assert len(EpochSampler(length, 8, 0)) == 8 * expected
    sampler = EpochSampler(length, 8, 0, batches=5)
    assert len(sampler) == len(draws(sampler)) == 40
    assert {draw.row for draw in draws(sampler)} == set(range(length))


def mixed(rank=0, world=1, *, length=40, batch=8, synthetic=25, ratio=0.25, seed=3, **more):
    return EpochSampler(length, batch, seed, rank, world, synthetic=synthetic, ratio=ratio, **more)


def rows(sampler, epoch=0):
    return np.array([draw.row for draw in draws(sampler, epoch)])


def global_batches(world, epoch=0, **knobs):
    """Rows of every global batch, joined from its ranks: shape (batches, batch size)."""
    parts = [mixed(rank, world, **knobs) for rank in range(world)]
    return np.concatenate([rows(part, epoch).reshape(part.batches, -1) for part in parts], axis=1)


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.0, 0), (0.01, 0), (0.1, 4), (0.25, 10), (0.33, 13), (1.0, 40)]
)
@pytest.mark.parametrize("world", [1, 2])
def test_an_epoch_holds_exactly_the_asked_share_of_synthetic_pairs(ratio, expected, world):
    for epoch in range(3):
        counts = [
            int((rows(mixed(rank, world, ratio=ratio), epoch) >= 40).sum()) for rank in range(world)
        ]
        assert sum(counts) == expected
        assert max(counts) - min(counts) <= 2


def test_synthetic_pairs_are_drawn_anew_each_epoch_without_repeats():
    epochs = [rows(mixed(), epoch) for epoch in range(30)]
    drawn = [order[order >= 40].tolist() for order in epochs]
    assert all(len(set(part)) == 10 for part in drawn)
    assert len({tuple(sorted(part)) for part in drawn}) == 30
    assert {row for part in drawn for row in part} == set(range(40, 65))
    np.testing.assert_array_equal(rows(mixed(), 4), epochs[4])
    places = {tuple(np.flatnonzero(order >= 40)) for order in epochs}
    assert len(places) > 5  # not only which pairs, but where they stand


@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.4, 1.0])
def test_global_batches_are_the_same_for_1_2_and_4_processes(ratio):
    for epoch in range(2):
        single = global_batches(1, epoch, ratio=ratio)
        for world in (2, 4):
            np.testing.assert_array_equal(global_batches(world, epoch, ratio=ratio), single)


@pytest.mark.parametrize("more", [{}, {"batches": 7}])
def test_the_epoch_and_the_real_order_do_not_depend_on_synthetic_pairs(more):
    plain = mixed(synthetic=0, **more)
    for ratio in (0.0, 0.25):
        sampler = mixed(ratio=ratio, **more)
        assert len(sampler) == len(plain) and sampler.batches == plain.batches
        order = rows(sampler, 2)
        real = order[order < 40]
        np.testing.assert_array_equal(real, rows(plain, 2)[: len(real)])


@pytest.mark.parametrize("batches", [3, 10, 97])
@pytest.mark.parametrize("ratio", [1 / 32, 1 / 16, 0.1, 0.25, 0.7])
def test_every_rank_has_its_share_of_every_batch_and_of_the_epoch(batches, ratio):
    for seed in range(4):
        order = global_batches(1, batches=batches, batch=16, ratio=ratio, seed=seed)
        is_synthetic = order >= 40
        assert is_synthetic.sum() == round(ratio * batches * 16)
        for world in (1, 2, 4, 16):
            cells = is_synthetic.reshape(batches, world, -1).sum(-1)
            even = cells.sum() / (batches * world)
            assert np.abs(cells - even).max() <= 1
            assert np.abs(cells.sum(0) - batches * even).max() < 3


@pytest.mark.parametrize(
    ("schedule", "ratio", "expected"),
    [
        ("constant", 0.3, [12, 12, 12, 12, 12]),
        ("falling", 0.3, [24, 18, 12, 6, 0]),
        ("falling", 0.75, [40, 35, 30, 25, 20]),
        ("falling", 0.1, [8, 6, 4, 2, 0]),
        ("falling", 0.075, [6, 5, 3, 1, 0]),  # 4.5 and 1.5 are shared out
        ("first", 0.3, [40, 20, 0, 0, 0]),
        ("first", 0.1, [20, 0, 0, 0, 0]),
        ("first", 1.0, [40, 40, 40, 40, 40]),
    ],
)
def test_a_schedule_moves_synthetic_draws_and_changes_no_share(schedule, ratio, expected):
    knobs = {"ratio": ratio, "schedule": schedule, "epochs": 5}
    orders = [rows(mixed(**knobs), epoch) for epoch in range(5)]  # each as after a resume
    assert [(order >= 40).sum() for order in orders] == expected
    assert sum(expected) == 5 * round(ratio * 40)
    for epoch, order in enumerate(orders):
        real = order[order < 40]
        np.testing.assert_array_equal(real, rows(mixed(synthetic=0), epoch)[: len(real)])
        np.testing.assert_array_equal(global_batches(2, epoch, **knobs).ravel(), order)
        if expected[epoch] == 5 * round(ratio * 40) / 5:
            np.testing.assert_array_equal(order, rows(mixed(ratio=ratio), epoch))


def test_repeated_pairs_are_drawn_as_often_as_asked():
    repeats = np.where(np.arange(40) < 8, 2.5, 1.0)
    epochs = [rows(mixed(synthetic=0, repeats=repeats, batches=7), e) for e in range(60)]
    assert all(len(order) == 56 for order in epochs)  # of a pool of 8 * 2.5 + 32 = 52
    counts = np.bincount(np.concatenate(epochs), minlength=40)
    assert counts[:8].mean() / counts[8:].mean() == pytest.approx(2.5, rel=0.05)


def test_fractions_are_rounded_anew_in_every_pool():
    sampler = mixed(synthetic=0, repeats=np.full(40, 1.5), batches=7)
    epochs = [np.bincount(rows(sampler, e), minlength=40) for e in range(20)]
    assert len({tuple(counts) for counts in epochs}) == 20
    np.testing.assert_array_equal(rows(sampler, 7), rows(sampler, 7))


def test_repeats_are_the_same_for_two_processes():
    both = global_batches(2, repeats=np.full(40, 1.7))
    np.testing.assert_array_equal(both, global_batches(1, repeats=np.full(40, 1.7)))


RARE = Focus(0.5, [1, 3], np.stack([np.arange(40) == 7, np.arange(40) % 10 == 0], 1) * 5)
BALANCED = Focus(1.0, [0, 1, 3], np.ones((40, 3), np.int64))


def on_a_class(focus, epoch=0, **knobs):
    order = draws(mixed(**{"synthetic": 0, "focus": focus} | knobs), epoch)
    return [draw for draw in order if draw.focus is not None]


def test_the_asked_share_of_an_epoch_is_on_a_class_and_classes_take_turns():
    for epoch in range(5):
        counts = Counter(draw.focus for draw in on_a_class(RARE, epoch, batches=7))
        assert counts == {1: 14, 3: 14}  # of 56
        counts = Counter(draw.focus for draw in on_a_class(BALANCED, epoch))
        assert sum(counts.values()) == 40 and sorted(counts.values()) == [13, 13, 14]


def test_a_crop_on_a_class_is_of_a_pair_that_holds_it():
    order = on_a_class(RARE, batches=50)
    assert all(draw.row == 7 if draw.focus == 1 else draw.row % 10 == 0 for draw in order)
    assert {draw.row for draw in order} == {0, 7, 10, 20, 30}


def test_crops_on_a_class_are_spread_evenly_among_the_others():
    for epoch in range(4):
        order = draws(mixed(synthetic=0, focus=RARE, batches=7), epoch)
        marks = np.array([draw.focus is not None for draw in order]).reshape(7, 8)
        assert (marks.sum(1) == 4).all() and (marks[:, 1:] != marks[:, :-1]).all()


@pytest.mark.parametrize("more", [{"synthetic": 0}, {"ratio": 0.25}])
def test_draws_on_a_class_are_the_same_for_1_2_and_4_processes(more):
    for epoch in (0, 5):  # the sixth epoch without those before it, as after a resume
        single = draws(mixed(focus=RARE, **more), epoch)
        for world in (2, 4):
            parts = [draws(mixed(rank, world, focus=RARE, **more), epoch) for rank in range(world)]
            assert sorted((d for part in parts for d in part), key=lambda d: d.serial) == single
        assert draws(mixed(focus=RARE, seed=4, **more), epoch) != single


def test_the_other_crops_keep_the_order_of_uniform_ones():
    order = draws(mixed(synthetic=0, focus=RARE), 2)
    others = [draw.row for draw in order if draw.focus is None]
    assert others == rows(mixed(synthetic=0), 2)[:20].tolist()
    assert [draw.serial for draw in order] == list(range(80, 120))


def test_synthetic_pairs_are_on_no_class():
    order = draws(mixed(focus=BALANCED))
    assert all((draw.focus is None) == (draw.row >= 40) for draw in order)
    assert sum(draw.row >= 40 for draw in order) == 10
    assert all(draw.focus is None for draw in draws(mixed()))
