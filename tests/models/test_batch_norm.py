from threading import Barrier, Thread, local

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from geoseg_gan.models import batch_norm
from geoseg_gan.models.batch_norm import sync_batch_norms


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 3, padding=1),
        nn.BatchNorm2d(2),
    )


def images():
    values = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return values + torch.arange(6).view(-1, 1, 1, 1)  # no two parts have like statistics


@pytest.mark.parametrize("on_gpu", [False, True])
def test_activations_that_layers_of_timm_hold_are_kept(on_gpu):
    torch.manual_seed(0)
    plain = nn.Sequential(BatchNormAct2d(3), nn.BatchNorm2d(3)).eval()
    expected = plain(images())
    shared = sync_batch_norms(plain, on_gpu)
    assert not any(type(norm) in (BatchNormAct2d, nn.BatchNorm2d) for norm in shared)
    assert torch.equal(shared(images()), expected)


@pytest.mark.parametrize("split", [([0, 1, 2], [3, 4, 5]), ([0, 1, 2, 3], [4, 5])])
def test_processes_normalise_by_all_their_batches(split, monkeypatch):
    place, slots, barrier = local(), [None, None], Barrier(2, timeout=20)

    def summed(values):
        slots[place.rank] = values
        barrier.wait()
        total = slots[0] + slots[1]
        barrier.wait()
        return total

    x = images()
    single = network()
    expected = single(x)
    expected.pow(3).sum().backward()
    monkeypatch.setattr(batch_norm, "_sum_over_processes", summed)
    monkeypatch.setattr(batch_norm.dist, "is_initialized", lambda: True)
    networks = [sync_batch_norms(network(), on_gpu=False) for _ in range(2)]
    found = [None, None]

    def work(rank):
        place.rank, rows = rank, split[rank]
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
        for value, other in zip(net.buffers(), single.buffers(), strict=True):
            torch.testing.assert_close(value, other)
