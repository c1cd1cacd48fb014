"""What the harness's tests share, and the counts that they print."""

import collections
import os
import time

import pytest
from cases import CASES, prepared
from processes import start

MINUTES = float(os.environ.get("GEOSEG_ROBUSTNESS_MINUTES", 4))
"""How long all tests that go on for as long as they may take together, on one core."""

SEED = int(os.environ.get("GEOSEG_ROBUSTNESS_SEED", 0))
"""Of all random draws."""


@pytest.fixture
def deadline():
    """A function that says when a share of the time is over: `deadline(0.1)` for a tenth of it."""
    return lambda share: time.monotonic() + 60 * MINUTES * share


@pytest.fixture
def seed(record_property):
    """The seed of all random draws, shown with the counts."""
    print(f"GEOSEG_ROBUSTNESS_SEED={SEED}")
    return SEED


@pytest.fixture(scope="session")
def places(tmp_path_factory, make_folder):
    """A folder with data, beside which `prepared` puts what else a case reads."""
    folder = tmp_path_factory.mktemp("places")
    make_folder(folder / "data", train=8, val=5)
    return folder


@pytest.fixture(scope="session")
def undisturbed(places):
    """The folder that a case leaves when nothing disturbs it, and the seconds that took."""
    done = {}

    def run(case, **options):
        if case not in done:
            name, arguments = CASES[case]
            cwd = prepared(places, case, "undisturbed")
            command = start(name, arguments, cwd, **options)
            assert command.end() == 0, command.texts()
            done[case] = cwd, time.monotonic() - command.started
        return done[case]

    return run


def pytest_terminal_summary(terminalreporter):
    """Adds up what the tests counted with `record_property`."""
    counts = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                counts.update({k: v for k, v in report.user_properties if isinstance(v, int)})
    if counts:
        terminalreporter.section(f"robustness, seed {SEED}")
        for name, number in sorted(counts.items()):
            terminalreporter.line(f"{number:7,} {name}")
