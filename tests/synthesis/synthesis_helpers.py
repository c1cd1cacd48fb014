"""What several tests of synthesis use."""

import json
from contextlib import contextmanager

import pytest
from defaults import defaults

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.settings import AffineStep, FlipStep, JitterSettings, QuarterTurnStep
from geoseg_gan.synthesis.candidates import CandidateMasks
from geoseg_gan.synthesis.settings import ComposeSettings
from geoseg_gan.utils.errors import UserError

BYTES = ImageScaling([0] * 3, [255] * 3)
GEOMETRY = {
    "affine": defaults(AffineStep, 0.5),
    "quarter_turn": defaults(QuarterTurnStep, 0.75),
    "flip": defaults(FlipStep, 0.5),
}
"""Steps of a jitter that moves masks."""


def files(folder, pattern="*"):
    """Names and bytes of a folder's files, but for the one by which it is held."""
    found = sorted(folder.glob(pattern))
    return {path.name: path.read_bytes() for path in found if path.name != ".lock"}


def facts(folder):
    return json.loads((folder / "generation.json").read_text())


def printed(capsys):
    """What the console shows, without line breaks."""
    return " ".join(capsys.readouterr().out.split())


@contextmanager
def refused(message):
    """Expects a user's mistake in one line that matches."""
    with pytest.raises(UserError, match=message) as caught:
        yield
    assert "\n" not in str(caught.value)


def candidate_masks(pairs, reader, kind=CandidateMasks, **changes):
    """Candidates of 32 px by crops, without jitter and composition, but for the changes."""
    plain = {"image_size": 32, "fit": "crop", "compose": defaults(ComposeSettings)}
    plain |= {"jitter": defaults(JitterSettings), "seed": 3}
    return kind(pairs=pairs, reader=reader, **(plain | changes))
