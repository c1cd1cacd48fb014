"""What several tests of generation do to it."""

import numpy as np
import pytest

from geoseg_gan.synthesis import report
from geoseg_gan.synthesis.writer import PairWriter


@pytest.fixture
def plain_histogram(monkeypatch):
    """An empty picture in the place of the histogram, whose axes take longer than all the rest."""
    monkeypatch.setattr(report, "score_histogram", lambda *_: np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def interrupt_before(monkeypatch):
    """Makes a call stop as by Ctrl-C: `interrupt_before(index, call)`."""
    add = PairWriter.add

    def interrupt(index, call):
        def some(self, pairs):
            before = [pair for pair in pairs if pair.candidate.index < index]
            add(self, before)
            if len(before) < len(pairs):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(PairWriter, "add", some)
            call()

    return interrupt
