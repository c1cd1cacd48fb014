from dataclasses import replace

import numpy as np
import pytest
import torch
from defaults import defaults
from torch.nn import functional as F

from geoseg_gan.data.jitter import draw_warp
from geoseg_gan.data.settings import JitterSettings
from geoseg_gan.synthesis.candidates import Candidate
from geoseg_gan.synthesis.filter import PairFilter
from geoseg_gan.synthesis.recognizer import Recognizer

LABEL = np.array([[0, 0, 0, 1], [0, 0, 1, 255]], np.uint8)
SEEN = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0]])
"""IoU 4/5 and 2/3, the ignored pixel left out: 0.7333 on average."""
LOSSES = (0.1, 0.1)
IMAGE = np.zeros((2, 4, 3), np.uint8)


def candidate(label=LABEL, **changes):
    warp = draw_warp(defaults(JitterSettings), np.random.default_rng(0))
    return Candidate(3, 3, 0, "a", warp, (0, 0, 4), label, **changes)


def recognizer(seen=SEEN):
    logits = 5 * F.one_hot(seen, 2).permute(2, 0, 1)[None].float()
    return Recognizer("abc", None, lambda pixels: logits, range(2))


def decision_of(pair_filter, label=LABEL, image=IMAGE):
    predicted = pair_filter.predict(torch.from_numpy(label)[None], torch.from_numpy(image)[None])
    return pair_filter.decide(candidate(label), [value[0] for value in predicted])


def test_without_a_segmenter_everything_is_kept():
    decision = decision_of(PairFilter())
    assert decision.kept and decision.label is LABEL
    assert decision.to_dict() == {"kept": True}


def test_a_candidate_without_its_required_classes_is_dropped_without_image():
    for pair_filter in (PairFilter(), PairFilter(recognizer())):
        decision = pair_filter.decide(candidate(lacks=("Settlement", "Water")), None)
        assert decision.to_dict() == {"kept": False, "why": "shows no Settlement and no Water"}


def test_the_pixel_filter_acts_on_what_is_written_not_on_the_score():
    decision = decision_of(PairFilter(recognizer(), 0.5, 1.25, LOSSES))
    assert decision.kept and decision.score == pytest.approx(11 / 15)
    assert decision.label.tolist() == [[0, 0, 255, 1], [0, 0, 1, 255]]
    assert decision.to_dict()["ignored_pixels"] == 1
    assert LABEL[0, 2] == 0
    dropped = decision_of(PairFilter(recognizer(), 0.9, 1.25, LOSSES))
    assert "ignored_pixels" not in dropped.to_dict()


def test_a_mask_that_the_pixel_filter_empties_is_dropped():
    decision = decision_of(PairFilter(recognizer(), 0.5, 1.25, (1e-4, 1e-4)))
    assert decision.why == "the pixel filter ignored all of it"
    assert decision.ignored == 7


def test_a_batch_is_filtered_as_its_images_are():
    # Sees class 1 where the first band is bright, and all images of a batch at once.
    shown = []

    def predict(pixels):
        shown.append(pixels.permute(0, 2, 3, 1).numpy())
        return 5 * F.one_hot((pixels[:, 0] > 99).long(), 2).permute(0, 3, 1, 2).float()

    together = Recognizer("abc", None, predict, (1, 0), singly=False)
    images = np.random.default_rng(0).integers(0, 200, (3, 2, 4, 3), np.uint8)
    labels = torch.from_numpy(np.stack([LABEL] * 3))
    pair_filter, single = (
        PairFilter(replace(together, singly=s), 0.2, 2.0, LOSSES) for s in (False, True)
    )
    predicted = pair_filter.predict(labels, torch.from_numpy(images))
    assert np.array_equal(shown[0], images)
    for row, image in enumerate(images):
        decision = pair_filter.decide(candidate(), [value[row] for value in predicted])
        assert decision.to_dict() == decision_of(single, image=image).to_dict()
