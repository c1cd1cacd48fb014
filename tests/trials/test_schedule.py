from concurrent.futures import Future

import pytest

from geoseg_gan.trials.schedule import Kind, Task, plan, work_off

ARMS = ["real", "oversample", "copy_paste", "synthetic_0.25", "synthetic_only"]


def result(arm, seed=0):
    return Task(Kind.RESULT, seed, arm)


def generator(seed=0):
    return Task(Kind.GENERATOR, seed)


def pairs(seed=0, folder="synthetic"):
    return Task(Kind.PAIRS, seed, folder)


def plan_of(arms, seeds, shared=False, refined=()):
    missing = [(a, s) for s in seeds for a in arms]
    folders = {"later": "synthetic"}  # a recipe that only mixes differently
    gan_seeds = {s: 0 if shared else s for s in seeds}
    return plan(missing, gan_seeds, lambda r: folders.get(r, r), dict(refined).get)


def test_pairs_wait_for_the_generator_and_the_filter_and_mixed_arms_for_the_pairs():
    needs = plan_of(ARMS, [0])
    assert needs[pairs()] == [generator(), result("real")]
    for arm in ("synthetic_0.25", "synthetic_only"):
        assert pairs() in needs[result(arm)]
    for task in (generator(), result("real"), result("oversample"), result("copy_paste")):
        assert not needs[task]
    assert len(needs) == len(ARMS) + 2


def test_recipes_share_a_generator_and_those_that_paint_alike_their_pairs():
    needs = plan_of(["synthetic_0.25", "later_0.25", "other_0.25"], [0])
    assert [task for task in needs if task.kind == Kind.GENERATOR] == [generator()]
    painted = [pairs(), pairs(folder="other")]
    assert [task for task in needs if task.kind == Kind.PAIRS] == painted
    assert needs[result("later_0.25")][0] == painted[0]
    assert needs[result("other_0.25")][0] == painted[1]


def test_recipes_that_refine_alike_share_a_refined_generator():
    refined = {"one": "refined-1", "two": "refined-1"}
    needs = plan_of(["synthetic_0.25", "one_0.25", "two_0.25"], [0], refined=refined)
    later = Task(Kind.GENERATOR, 0, "refined-1")
    assert needs[later] == [generator()] and not needs[generator()]
    assert needs[pairs()][0] == generator()
    assert needs[pairs(folder="one")][0] == needs[pairs(folder="two")][0] == later


def test_one_generator_for_all_seeds_is_trained_once():
    needs = plan_of(["real", "synthetic_0.25"], [0, 1, 2], shared=True)
    assert [task for task in needs if task.kind in (Kind.GENERATOR, Kind.PAIRS)] == [
        generator(),
        pairs(),
    ]
    # Where nothing is kept the mixed arm is a run of real, whose folder no two may write.
    assert needs[result("synthetic_0.25", 2)] == [pairs(), result("real", 2)]


@pytest.mark.parametrize("shared", [False, True])
def test_a_filter_is_a_task_of_its_own_where_arm_real_is_not_asked_for(shared):
    needs = plan_of(["synthetic_0.25", "synthetic_only"], [1], shared)
    source = 0 if shared else 1
    filters = [task for task in needs if task.kind == Kind.FILTER]
    assert filters == [Task(Kind.FILTER, seed) for seed in sorted({source, 1})]
    assert needs[pairs(source)] == [generator(source), Task(Kind.FILTER, source)]
    assert needs[filters[-1]] == ([pairs(0)] if shared else [])  # needed where nothing is kept
    assert needs[result("synthetic_only", 1)] == [pairs(source), Task(Kind.FILTER, 1)]


class Places:
    """Does tasks at once, and holds them to what they need."""

    def __init__(self, needs, broken=None):
        self.needs, self.broken, self.begun = needs, broken, []

    def start(self, task):
        self.begun.append(task)
        future = Future()
        if task == self.broken:
            future.set_exception(RuntimeError("broken"))
        else:
            future.set_result(str(task))
        return future


def test_tasks_start_once_what_they_need_is_done_long_chains_first():
    needs = plan_of(ARMS, [0, 1])
    places, done = Places(needs), []

    def start(task):
        assert set(needs[task]) <= set(done), task
        assert len(places.begun) - len(done) < 2
        return places.start(task)

    for task, outcome in work_off(needs, start, 2):
        assert outcome == str(task)
        done.append(task)
    assert sorted(done) == sorted(needs)
    assert set(places.begun[:4]) == {generator(0), generator(1), result("real"), result("real", 1)}
    assert {task.kind for task in places.begun[4:6]} == {Kind.PAIRS}


def test_nothing_starts_after_a_failure():
    places = Places(needs := plan_of(ARMS, [0]), broken=generator())
    with pytest.raises(RuntimeError, match="broken"):
        list(work_off(needs, places.start, 1))
    assert places.begun == [generator()]
