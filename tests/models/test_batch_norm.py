from copy import deepcopy
from threading import Barrier, Thread, local

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from geoseg_gan.models import batch_norm
from geoseg_gan.models.batch_norm import separate_batch_norm, sync_batch_norms


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 3, padding=1),
        nn.BatchNorm2d(2),
    )


def images(count=6, size=8):
    values = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return values + torch.arange(count).view(-1, 1, 1, 1)  # no two parts have like statistics


def assert_same_buffers(first, second):
    for value, other in zip(first.buffers(), second.buffers(), strict=True):
        torch.testing.assert_close(value, other)


def test_each_part_is_normalised_as_a_batch_by_itself_and_only_the_first_is_counted():
    x = images()
    together, first, other = network(), network(), network()
    with separate_batch_norm(together, 4, 6):
        y = together(x)
    torch.testing.assert_close(y[:4], first(x[:4]))
    torch.testing.assert_close(y[4:], other(x[4:]))
    assert_same_buffers(together, first)
    assert not torch.allclose(first(x)[:4], y[:4])
    torch.testing.assert_close(together(x), network()(x))  # as before, once the context has ended


def test_a_batch_of_the_other_part_alone_moves_nothing():
    together, before = network(), network()
    with separate_batch_norm(together, 0, 6):
        y = together(images())
    torch.testing.assert_close(y, network()(images()))
    assert_same_buffers(together, before)


def test_layers_that_activate_as_well_go_on_doing_so():
    norm = BatchNormAct2d(3)
    with separate_batch_norm(norm, 4, 6):
        assert (norm(images()) >= 0).all()


def test_one_pixel_of_one_image_is_normalised_by_the_running_statistics():
    norm, x = nn.BatchNorm2d(3), images(3, 1)
    norm.running_mean.fill_(0.5)
    with separate_batch_norm(norm, 2, 3):
        y = norm(x)
    torch.testing.assert_close(y[2:], deepcopy(norm).eval()(x[2:]))
    assert norm.training and norm.track_running_stats


@pytest.mark.parametrize("split", [([0, 1, 2], [3, 4, 5]), ([0, 1, 2, 3], [4, 5])])
def test_processes_normalise_the_parts_of_all_their_batches(split, monkeypatch):
    place, slots, barrier = local(), [None, None], Barrier(2, timeout=20)

    def summed(values):
        slots[place.rank] = values
        barrier.wait()
        total = slots[0] + slots[1]
        barrier.wait()
        return total

    x = images()
    single = network()
    with separate_batch_norm(single, 4, 6):
        expected = single(x)
    expected.pow(3).sum().backward()
    monkeypatch.setattr(batch_norm, "_sum_over_processes", summed)
    monkeypatch.setattr(batch_norm.dist, "is_initialized", lambda: True)
    networks = [sync_batch_norms(network(), on_gpu=False) for _ in range(2)]
    found = [None, None]

    def work(rank):
        place.rank, rows = rank, split[rank]
        with separate_batch_norm(networks[rank], sum(row < 4 for row in rows), len(rows)):
            found[rank] = networks[rank](x[rows])

    threads = [Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = torch.cat(found)
    torch.testing.assert_close(together, expected)
    together.pow(3).sum().backward()
    shared = zip(*(net.parameters() for net in networks), strict=True)
    for whole, parts in zip(single.parameters(), shared, strict=True):
        torch.testing.assert_close(sum(p.grad for p in parts), whole.grad, rtol=1e-4, atol=1e-2)
    for net in networks:
        assert_same_buffers(net, single)
