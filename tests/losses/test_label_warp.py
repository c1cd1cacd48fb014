import numpy as np
import pytest
import torch

from geoseg_gan.data.jitter import Warp, sample_label
from geoseg_gan.data.settings import ElasticStep
from geoseg_gan.losses.label_warp import LabelWarp


def blocks(count=4, side=64):
    """Squares of 16 pixels, each of another class."""
    rows, columns = torch.meshgrid(
        torch.arange(side) // 16, torch.arange(side) // 16, indexing="ij"
    )
    label = (4 * rows + columns).to(torch.uint8).expand(count, side, side).clone()
    return {"label": label, "regions": label.int() + 100_000, "image": label[:, None]}


def test_masks_and_regions_bend_alike_by_the_numbers_of_the_samples():
    warp, sample = LabelWarp(ElasticStep(1.0, 3.0, 24.0), seed=0), blocks()
    bent = warp(sample, range(4), 0)
    assert bent["label"].dtype == torch.uint8 and bent["image"] is sample["image"]
    assert torch.equal(bent["label"].int() + 100_000, bent["regions"])
    moved = (bent["label"] != sample["label"]).float().mean((1, 2))
    assert (moved > 0.05).all() and (moved < 0.6).all()
    assert not torch.equal(bent["label"][0], bent["label"][1])
    part = {"label": sample["label"][2:]}
    assert torch.equal(warp(part, [2, 3], 7)["label"], bent["label"][2:])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(sample, range(4), 0)["label"], bent["label"])
    # The same displacement as that of jitter.
    draws = np.random.default_rng((0x3A8E3, 0, 2)).integers(2**31)
    maps = Warp(elastic=(int(draws), 3.0, 24.0)).source_map(64, 64, (0, 0, 64))
    other = torch.from_numpy(sample_label(sample["label"][2].numpy(), maps))
    assert (other == bent["label"][2]).float().mean() > 0.99


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_so_many_batches_are_bent_and_others_stay_what_they_are(p):
    warp, sample = LabelWarp(ElasticStep(p, 3.0, 24.0), seed=0), blocks(1)
    bent = [warp(sample, [0], batch) is not sample for batch in range(200)]
    assert abs(sum(bent) / 200 - p) <= (0.1 if 0 < p < 1 else 0)
