"""Real images and ground that stand in training and in validation."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from rich.progress import track

from geoseg_gan.data.images import read_image
from geoseg_gan.data.pairs import DataError, Pair, groups_of
from geoseg_gan.errors import plural

_BAR_FROM = 200  # fewer images take a moment, which needs no bar


def refuse_shared_images(train: Sequence[Pair], val: Sequence[Pair]) -> None:
    """Refuses validation images whose pixels also stand in training, under whatever name.

    Raises:
        DataError: Naming the first such image and its double, and how many there are.
    """
    known = dict(zip(_digests(train, "Hashing training images"), train, strict=True))
    digests = _digests(val, "Hashing validation images")
    doubles = [(pair, known[d]) for pair, d in zip(val, digests, strict=True) if d in known]
    if doubles:
        ours, theirs = doubles[0]
        more = f" (and {plural(len(doubles) - 1, 'more image')})" * (len(doubles) > 1)
        raise DataError(
            f"{ours.image} has the same pixels as {theirs.image}{more}: figures on it would prove "
            "nothing. Remove one of the two, or split by ground with scripts/tile.py."
        )


def shared_ground(
    train: Sequence[Pair],
    val: Sequence[Pair],
    held_out: Sequence[Pair] = (),
    kind: str = "validation",
) -> str | None:
    """What to say of ground that stands in training and in validation; None where none does.

    Args:
        train: Pairs that are trained on.
        val: Pairs that are validated on.
        held_out: Training pairs that are not trained on, which count as if they were.
        kind: What the pairs that are validated on are called.
    """
    shared = {*groups_of(train), *groups_of(held_out)} & set(groups_of(val))
    if not shared:
        return None
    return (
        f"{plural(len(shared), 'group')} of ground (e.g. '{min(shared)}') in train and in {kind}: "
        f"{kind} figures will flatter. Split by group with scripts/tile.py."
    )


def _digests(pairs: Sequence[Pair], title: str) -> list[str]:
    # Threads rather than processes: decoding and hashing release the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests: Iterable[str] = pool.map(_digest, pairs)
        if len(pairs) >= _BAR_FROM:
            digests = track(digests, title, total=len(pairs))
        return list(digests)


def _digest(pair: Pair) -> str:
    # Of the pixels, not of the file: a copy saved in another format is the same image.
    pixels = read_image(pair.image)
    facts = f"{pixels.shape}{pixels.dtype}".encode()
    return hashlib.sha256(facts + pixels.tobytes()).hexdigest()
