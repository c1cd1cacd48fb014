from dataclasses import replace

import numpy as np
import pytest
import torch
from synthesis_helpers import candidate_masks

from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.pairs import find_pairs
from geoseg_gan.models.loaded import load_generator
from geoseg_gan.synthesis import generate_images as module
from geoseg_gan.synthesis.candidates import CandidateMasks
from geoseg_gan.synthesis.generate_images import generate_batches, generate_images

CPU = torch.device("cpu")


class SomeLacking(CandidateMasks):
    """Every third candidate lacks a class."""

    def __getitem__(self, index):
        candidate = super().__getitem__(index)
        return replace(candidate, lacks=("Settlement",)) if index % 3 == 1 else candidate


@pytest.fixture
def root(tmp_path, make_folder):
    return make_folder(tmp_path / "data", train=2, val=0)


@pytest.fixture
def loaded(generator, root):
    return load_generator(generator(root))


@pytest.fixture
def candidates(root, palette):
    return candidate_masks(find_pairs(root, "train"), MaskReader(palette), SomeLacking, seed=5)


def test_an_image_depends_on_its_mask_number_and_seed_alone(loaded):
    labels = list(np.random.default_rng(0).integers(0, 3, (3, 32, 32)).astype(np.uint8))
    together = generate_images(loaded, labels, seed=1, indices=[4, 7, 9], device=CPU)
    alone = generate_images(loaded, labels[1:2], seed=1, indices=[7], device=CPU)[0]
    assert alone.shape == (32, 32, 3) and alone.dtype == np.uint8
    assert np.array_equal(together[1], alone)
    assert generate_images(loaded, [], seed=1, indices=[], device=CPU) == []
    for seed, number in ((1, 8), (2, 7)):
        other = generate_images(loaded, labels[1:2], seed=seed, indices=[number], device=CPU)[0]
        assert not np.array_equal(other, alone)


def test_what_is_made_ahead_comes_in_order_and_so_does_what_goes_wrong():
    def items():
        yield from range(5)
        raise OSError("gone")

    seen = []
    with pytest.raises(OSError, match="gone"):
        for item in module._prefetched(items()):
            seen.append(item)
    assert seen == list(range(5))
    assert list(module._delayed(iter(range(5)))) == list(range(5))
    closed = module._prefetched(iter(range(5)))
    assert next(closed) == 0
    closed.close()


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (4, 2)])
def test_candidates_come_in_order_and_those_that_lack_a_class_without_image(
    loaded, candidates, batch_size, num_workers
):
    numbers = list(range(2, 12))
    batches = [numbers[at : at + batch_size] for at in range(0, 10, batch_size)]
    found = generate_batches(loaded, candidates, batches, num_workers=num_workers, device=CPU)
    pairs = [(candidate, image) for batch in found for candidate, image, _ in batch]
    assert [candidate.index for candidate, _ in pairs] == list(range(2, 12))
    for candidate, image in pairs:
        if candidate.lacks:
            assert image is None and candidate.index % 3 == 1
            continue
        numbered = {"seed": 5, "indices": [candidate.index], "device": CPU}
        assert np.array_equal(image, generate_images(loaded, [candidate.label], **numbered)[0])
