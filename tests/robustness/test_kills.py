"""Whatever kills a command, the same command ends in the state of an undisturbed run."""

import os
import random
import shutil
import signal
import time

import pytest
from cases import CASES, CLOCKS, prepared
from processes import alive_after, check_whole, compare, start

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
"""How a command ends that such a signal reaches; one that has just finished ends with 0."""

KINDS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOST = 200  # kills of a case
SHARE = 0.75 / len(CASES)  # of the time of the harness, for each case


def kill_and_repeat(
    case, cwd, reference, *, kill_at="", kind=signal.SIGKILL, delay=None, whole, fresh=False
):
    """Kills a case once, at a rename or after some seconds, and repeats it until it has ended.

    Returns:
        What is wrong; an empty list where nothing is.
    """
    name, arguments = CASES[case]
    run = start(name, arguments, cwd, kill_at, fresh=fresh or "2 processes" in case)
    if delay is not None:
        while not run.begun() and run.wait(0.01) is None:
            pass
        run.wait(delay)
        for pid in [run.pid] if not whole else alive_after(run.pid, 0):
            if run.wait(0) is None:
                os.kill(pid, kind)
    try:
        code = run.end()
    except AssertionError as error:
        return [str(error)]
    wrong = []
    # A process whose companion was killed ends with an error of its own.
    if code not in (0, -kind, CODES.get(kind), *((1,) if "2 processes" in case else ())):
        wrong.append(f"exit code {code}: {run.texts()[1]}")
    if left := alive_after(run.pid):
        wrong.append(f"alive after 10 s: {left}")
        run.kill_all()
    stderr_lines = [
        line for line in run.texts()[1].splitlines() if not line.startswith("warning: ")
    ]
    if (code == CODES.get(kind) and len(stderr_lines) != 1) or (code < 0 and stderr_lines):
        wrong.append(f"stderr: {stderr_lines}")
    try:
        check_whole(cwd / "out")
        again = start(name, arguments, cwd, fresh=fresh)
        if code := again.end():
            wrong.append(f"the same command ends with {code}: {again.texts()[1]}")
        compare(cwd, reference, CLOCKS)
    except AssertionError as error:
        wrong.append(str(error))
    return wrong


def renames_of(case, places):
    """How many renames an undisturbed run of a case makes."""
    cwd = prepared(places, case, "counted")
    log = cwd.with_name("renames")
    log.unlink(missing_ok=True)
    name, arguments = CASES[case]
    command = start(name, arguments, cwd, f"log {log}", fresh="2 processes" in case)
    assert command.end() == 0, command.texts()
    return log.stat().st_size


def test_a_kill_after_the_last_rename(places, undisturbed):
    log = places / "renames"
    # New interpreters are quicker for a few runs.
    reference, _ = undisturbed("tile", fresh=True, kill_at=f"log {log}")
    cwd = prepared(places, "tile", "killed")
    last = {"kill_at": f"after {log.stat().st_size} 9", "whole": False, "fresh": True}
    assert kill_and_repeat("tile", cwd, reference, **last) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kills(case, places, undisturbed, seed, deadline, record_property):
    end, draw = deadline(SHARE), random.Random(f"{seed} {case}")
    reference, seconds = undisturbed(case)
    moments = [(w, k) for k in range(renames_of(case, places)) for w in ("before", "after")]
    draw.shuffle(moments)
    wrong, counts = [], dict.fromkeys(("rename", *(kind.name for kind in KINDS)), 0)
    for number in range(MOST):
        cwd = prepared(places, case, "killed")
        if moments and number % 2 == 0:
            where, k = moments.pop()
            how = {"kill_at": f"{where} {k + 1} 9", "whole": False}
            counts["rename"] += 1
        else:
            kind = KINDS[number // 2 % len(KINDS)]
            how = {"kind": kind, "delay": draw.uniform(0, seconds), "whole": draw.random() < 0.5}
            counts[kind.name] += 1
        if found := kill_and_repeat(case, cwd, reference, **how):
            wrong.append(f"{case} {how}: {'; '.join(found)}")
            print(wrong[-1], flush=True)
        shutil.rmtree(cwd)
        if time.monotonic() > end:
            break
    for name, count in counts.items():
        record_property(f"kills: {case}, {name}", count)
    assert wrong == [], "\n".join(["", *wrong])
