"""Images for label maps and candidates, by a trained generator."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geoseg_gan.data.batch import one_hot_of, to_device
from geoseg_gan.data.datamodule import start_worker
from geoseg_gan.data.transplant import region_map
from geoseg_gan.models.generators.noise import NoiseSpec, draw_noise, noise_maps
from geoseg_gan.models.loaded import LoadedGenerator
from geoseg_gan.synthesis.candidates import Candidate, CandidateMasks
from geoseg_gan.synthesis.compose import Blend

Predict = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""What is worked out from label maps (B, H, W) and their images (B, H, W, K), image by image."""

WithImage = tuple[Candidate, npt.NDArray[Any] | None, tuple[Tensor, ...] | None]
"""A candidate, its image (H, W, K) in the stored dtype, and what was worked out from it, on the
CPU; both None for an unfit candidate."""

Item = TypeVar("Item")

_AHEAD = 2  # batches that a GPU is given before they are needed, and that it may be behind


def generate_images(
    generator: LoadedGenerator,
    labels: Sequence[npt.NDArray[np.uint8]],
    *,
    seed: int,
    indices: Sequence[int],
    device: torch.device,
) -> list[npt.NDArray[Any]]:
    """Generates one image for each label map.

    On a CPU each image makes a batch, since the order of additions, and with it the last bit, would
    depend on the batch; little speed is lost there.

    Args:
        generator: A loaded generator, on `device`.
        labels: Label maps of one shape (H, W), uint8.
        seed: The run's seed.
        indices: Number of each pair, which with the seed fixes its noise.
        device: Where the generator is.

    Returns:
        Images of shape (H, W, K) in the stored dtype of the training images.
    """
    step = 1 if device.type == "cpu" else len(labels)
    images: list[npt.NDArray[Any]] = []
    for first in range(0, len(labels), step):
        rows = slice(first, first + step)
        part = labels[rows]
        regions = [region_map(label) for label in part] if generator.network.noise.region else []
        inputs = _inputs(generator, part, regions, seed, indices[rows], device)
        images += list(_images(generator, inputs).cpu().numpy())
    return images


def default_workers(device: torch.device, processes: int = 1) -> int:
    """How many workers draw masks, so that generating need not wait for them.

    One keeps a CPU busy; with GPUs, `processes` of them share the machine's cores.
    """
    if device.type == "cpu":
        return 1
    return max(1, min(8, (os.cpu_count() or 1) // processes - 1))


def generate_batches(
    generator: LoadedGenerator,
    candidates: CandidateMasks,
    batches: Sequence[list[int]],
    *,
    num_workers: int,
    device: torch.device,
    predict: Predict = lambda labels, images: (),
) -> Iterator[list[WithImage]]:
    """Generates candidates' images while workers draw the next masks.

    On a GPU the next batches are made and sent in a thread, and some are generated while the
    results of earlier ones are used, so that the GPU always has work. On a CPU everything follows
    one by one, and each image makes a batch (see `generate_images`).

    Args:
        generator: A loaded generator, on `device`.
        candidates: The masks; their seed also fixes the noise.
        batches: Numbers of the candidates of every batch. Unfit ones get no image.
        num_workers: Processes that read and jitter masks.
        device: Where the generator is.
        predict: What is to be worked out from the images, on `device`.

    Raises:
        UserError: If a mask cannot be read.
    """
    on_gpu = device.type == "cuda"
    loader: DataLoader[Any] = DataLoader(
        _Drawn(candidates, generator.network.noise),
        batch_sampler=batches,
        num_workers=min(num_workers, len(batches)),
        collate_fn=list,
        worker_init_fn=start_worker,
    )
    prepared = (
        _prepare(generator, part, candidates, device)
        # Workers end with the thread that starts them, which must be this one.
        for batch in iter(loader)
        for part in ([batch] if on_gpu else [[item] for item in batch])
    )
    ready = _prefetched(prepared) if on_gpu else prepared
    started = (_start(generator, part, predict) for part in ready)
    for batch in _delayed(started) if on_gpu else started:
        yield batch.results()


class _Item(NamedTuple):
    """A candidate and its regions (H, W), int32; None where the noise does not need them."""

    candidate: Candidate
    regions: npt.NDArray[np.int32] | None


@dataclass(frozen=True)
class _Drawn(Dataset[_Item]):
    """Candidates by number."""

    candidates: CandidateMasks
    noise: NoiseSpec

    def __getitem__(self, index: int) -> _Item:
        candidate = self.candidates[index]
        wanted = self.noise.region and not candidate.unfit
        return _Item(candidate, region_map(candidate.label) if wanted else None)


class _Inputs(NamedTuple):
    """What a batch is generated from, on the device: masks (B, H, W), regions, and noise draws."""

    labels: Tensor
    regions: Tensor
    drawn: Tensor


@dataclass(frozen=True)
class _Prepared:
    """Candidates of a batch, and the inputs of those that get an image."""

    candidates: list[Candidate]
    inputs: _Inputs | None
    blend: Blend | None = None
    exemplars: Tensor | None = None  # shape (B, H, W, K), shown in place of generated images


def _prepare(
    generator: LoadedGenerator, batch: list[_Item], source: CandidateMasks, device: torch.device
) -> _Prepared:
    candidates = [item.candidate for item in batch]
    wanted = [item for item in batch if not item.candidate.unfit]
    if not wanted:
        return _Prepared(candidates, None)
    labels, indices = zip(*((c.label, c.index) for c, _ in wanted), strict=True)
    regions = [item.regions for item in wanted if item.regions is not None]
    compositions, styles = zip(*((c.composition, c.style) for c, _ in wanted), strict=True)
    exemplars = [c.exemplar for c, _ in wanted if c.exemplar is not None]
    return _Prepared(
        candidates,
        _inputs(generator, labels, regions, source.seed, indices, device),
        Blend.of(compositions, styles, source.compose.match, device),
        to_device(np.stack(exemplars), device) if exemplars else None,
    )


@torch.inference_mode()
def _inputs(
    generator: LoadedGenerator,
    labels: Sequence[npt.NDArray[np.uint8]],
    regions: Sequence[npt.NDArray[np.int32]],
    seed: int,
    indices: Sequence[int],
    device: torch.device,
) -> _Inputs:
    stacked = np.stack(labels)
    # Drawn on the CPU everywhere, so that every device uses the same noise; its maps, which are
    # large, are made where they are used.
    drawn = draw_noise(generator.network.noise, seed, indices, stacked.shape[1:])
    return _Inputs(
        to_device(stacked, device),
        to_device(np.stack(regions) if regions else stacked, device),
        to_device(drawn.numpy(), device),
    )


@torch.inference_mode()
def _images(
    generator: LoadedGenerator,
    inputs: _Inputs,
    blend: Blend | None = None,
    exemplars: Tensor | None = None,
) -> Tensor:
    """Images (B, H, W, K) in the stored dtype, on the device of the inputs."""
    if blend is not None and blend.real is not None and blend.all_real:
        return blend.real
    if exemplars is None:
        one_hot = one_hot_of(inputs.labels, generator.facts.palette.num_classes)
        noise = noise_maps(generator.network.noise, inputs.drawn, inputs.regions)
        images = generator.network(one_hot, noise)
    else:
        images = generator.facts.scaling.to_network(exemplars.movedim(-1, 1))
    if blend is not None:
        images = blend.with_styles(images, inputs.labels)
    values = generator.facts.scaling.to_values(images)
    return generator.facts.scaling.rounded(values if blend is None else blend.over_real(values))


@dataclass(frozen=True)
class _Started:
    """A batch whose images and predictions are there, or on a GPU will be after `done`."""

    candidates: list[Candidate]
    values: tuple[Tensor, ...]
    done: torch.cuda.Event | None

    def results(self) -> list[WithImage]:
        """Waits for them."""
        if self.done is not None:
            self.done.synchronize()
        rows = zip(*self.values, strict=True)
        values = [None if candidate.unfit else next(rows) for candidate in self.candidates]
        return [
            (candidate, None, None) if row is None else (candidate, row[0].numpy(), row[1:])
            for candidate, row in zip(self.candidates, values, strict=True)
        ]


@torch.inference_mode()
def _start(generator: LoadedGenerator, part: _Prepared, predict: Predict) -> _Started:
    """Generates and predicts; on a GPU all of this only starts."""
    if part.inputs is None:
        return _Started(part.candidates, (), None)
    labels = part.inputs.labels
    images = _images(generator, part.inputs, part.blend, part.exemplars)
    values = (images, *predict(labels, images))
    if labels.device.type == "cpu":
        return _Started(part.candidates, values, None)
    values = tuple(_to_host(value) for value in values)
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(labels.device))
    return _Started(part.candidates, values, done)


def _to_host(value: Tensor) -> Tensor:
    """A copy on the host, complete once the device has come to it."""
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return host.copy_(value, non_blocking=True)


def _prefetched(items: Iterator[Item]) -> Iterator[Item]:
    """The items, of which the next ones are made in a thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(_AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item


def _delayed(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each once some later ones are there."""
    waiting: deque[Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting
