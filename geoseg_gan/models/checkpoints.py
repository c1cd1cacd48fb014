"""The files of networks and of trainings: what they hold, writing, reading, checking.

A network's file holds tensors and plain types only and is read with `weights_only=True`, so that
nothing in it can run code. Each is enough by itself: palette, image scaling and the training run's
configuration are stored beside the weights.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from geoseg_gan.data.batch import ImageScaling
from geoseg_gan.data.fingerprint import FINGERPRINTS, Fingerprints
from geoseg_gan.data.images import DTYPES
from geoseg_gan.data.palette import PALETTE, Palette, UnknownPolicy
from geoseg_gan.data.settings import Fit, MaskFormat
from geoseg_gan.models.settings import current_config
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path
from geoseg_gan.utils.reading import Number, check_content, whole

NetworkKind = Literal["generator", "discriminator", "segmenter"]

FORMATS: dict[NetworkKind, int] = {"generator": 2, "discriminator": 2, "segmenter": 1}
"""The format of each kind of file; it grows when older files can no longer be read."""

NETWORK_FILES: dict[NetworkKind, str] = {
    "generator": "a generator checkpoint (G_e###.pt), which train writes",
    "discriminator": "a discriminator checkpoint (D_e###.pt), which train writes",
    "segmenter": "a segmenter checkpoint (segmenter.pt), which train_segmenter writes",
}
"""What each kind of file is, for messages."""

SAFETENSORS = ".safetensors"
"""The ending of files of that format; all others are those of torch.save."""

_ENTRY = "geoseg_gan"  # of a safetensors file's metadata: all but the weights, as JSON
_MOST_VALUES, _DEEPEST = 200_000, 100  # in a checkpoint, and levels of what lies in another

BAND_RANGES = {"low": [Number()], "high": [Number()]}
"""How the image scaling of a network is stored."""

_PLAIN = (str, Number(), bool, None)
_SETTINGS = {"name": str, "*": _PLAIN}
_OPTION = (str, bool, None, Number(-(2**16), 2**16))
_NETWORK = {
    "epoch": whole(),
    "weights": {"*": Tensor},
    "palette": PALETTE,
    "scaling": {**BAND_RANGES, "dtype": set(DTYPES)},
    "data?": (None, FINGERPRINTS),
}
_JUDGED = {"held_out": [Number(finite=False)], "scores": {"*": Number(finite=False)}}
_CONFIGS: dict[NetworkKind, Any] = {
    "generator": {
        "model": {"generator": _SETTINGS, "discriminator": _SETTINGS},
        "data_root": str,
        "image_size": whole(1, 2**15),
        "seed": whole(0, 2**64),
        "inner_share?": Number(0, 1),
        "data": {
            "mask_format": set(get_args(MaskFormat)),
            "index_map?": (None, {"*": (str, whole())}),
            "nodata?": (None, Number()),
            "unknown": set(get_args(UnknownPolicy)),
            "fit": set(get_args(Fit)),
            "gsd": (None, Number(0, 1e6)),
            "group_regex": (None, str),
            "split_file?": (None, str),
        },
    },
    "discriminator": {"model": {"generator": _SETTINGS, "discriminator": _SETTINGS}},
    "segmenter": {
        "segmenter": {
            "arch": str,
            "encoder": str,
            "encoder_weights": (None, str),
            "options": {"*": (*_OPTION, [_OPTION])},
            "image_scale?": Number(0.25, 4),
        },
        "image_size": whole(1, 2**15),
        "data?": {"nodata?": (None, Number()), "*": object},
    },
}
_COUNTS = {"ready": whole(), "processed": whole(), "*": whole()}
_PROGRESS = {"total": _COUNTS, "current": _COUNTS}
_STATE = {
    "epoch": whole(),
    "global_step": whole(),
    "pytorch-lightning_version": str,
    "state_dict": {"*": (Tensor, dict)},
    "optimizer_states": [{"state": dict, "param_groups": [dict]}],
    "lr_schedulers": [dict],
    "callbacks": dict,
    "loops": {
        "fit_loop": {"epoch_progress": _PROGRESS, "epoch_loop.batch_progress": _PROGRESS},
        "*": dict,
    },
    "config": {"epochs": whole(1), "max_minutes?": (None, Number(0)), "model?": {"*": _SETTINGS}},
    "data?": (None, FINGERPRINTS),
}


@dataclass(frozen=True)
class RunFacts:
    """What every checkpoint of a run holds beside the weights.

    Attributes:
        config: The training run's resolved configuration, plain types only.
        palette: Classes and colours.
        scaling: Between stored image values and [-1, 1].
        data: Fingerprints of the data; None in files of earlier versions.
    """

    config: dict[str, Any]
    palette: Palette
    scaling: ImageScaling
    data: Fingerprints | None = None


@dataclass(frozen=True)
class SegmenterEvaluation:
    """How good a segmenter is on real data.

    Attributes:
        held_out: mIoU on every window of the training tiles that were held out of its training;
            empty where there were none.
        scores: Figures by name, such as "val/miou".
    """

    held_out: list[float]
    scores: dict[str, float]


def save_network(
    path: Path,
    kind: NetworkKind,
    network: nn.Module,
    facts: RunFacts,
    epoch: int,
    evaluation: SegmenterEvaluation | None = None,
) -> None:
    """Writes a network trained for `epoch` epochs, whole or not at all; replaces an older file.

    The format is safetensors where the path ends in .safetensors, else that of torch.save.
    """
    content = {
        "format": FORMATS[kind],
        "kind": kind,
        "epoch": epoch,
        "config": facts.config,
        "palette": facts.palette.to_dict(),
        "scaling": asdict(facts.scaling),
        "data": facts.data,
    }
    if evaluation is not None:
        content["judged"] = asdict(evaluation)  # the key of format 1, which older files have
    weights = {name: value.cpu() for name, value in network.state_dict().items()}
    with atomic_path(path) as scratch:
        if path.suffix == SAFETENSORS:
            from safetensors.torch import save

            plain = {name: value.contiguous() for name, value in weights.items()}
            texts = {"format": "pt", _ENTRY: json.dumps(content)}
            scratch.write_bytes(_in_order(save(plain, texts), texts))
            return
        # Given a path, torch.save would put its name, which is random, into the file.
        with scratch.open("wb") as file:
            torch.save(content | {"weights": weights}, file)


def _in_order(content: bytes, texts: Mapping[str, str]) -> bytes:
    """A safetensors file with its metadata in order; safetensors writes them in a random one."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]) | {"__metadata__": texts}).encode()
    header += b" " * (-len(header) % 8)  # so that tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[end:]


def network_kind(path: Path) -> NetworkKind:
    """Which kind of network a file holds that is a generator or a segmenter.

    Raises:
        UserError: If there is no such file, or it is not of this project.
    """
    advice = "Give a G_e###.pt or a segmenter.pt."
    if not path.is_file():
        raise UserError(f"{path} does not exist. {advice}")
    return "segmenter" if _load(path, advice).get("kind") == "segmenter" else "generator"


def read_network(path: Path, kind: NetworkKind) -> dict[str, Any]:
    """What the file of a network holds, every field of it checked but the weights' names.

    Raises:
        UserError: If there is no such file, or it holds no such network this version can read.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist. Give {NETWORK_FILES[kind]}.")
    content = _load(path, f"Give {NETWORK_FILES[kind]}.")
    if "format" not in content or "kind" not in content:
        raise UserError(f"{path} is not a checkpoint of this project. Give {NETWORK_FILES[kind]}.")
    if content["kind"] != kind:
        raise UserError(
            f"{path} holds a {content['kind']}, but a {kind} is needed: give {NETWORK_FILES[kind]}."
        )
    if content["format"] != FORMATS[kind]:
        raise UserError(
            f"{path} has format {content['format']}, but this version reads format "
            f"{FORMATS[kind]}. Use the version of geoseg-gan that wrote it, or train again."
        )
    shape = _NETWORK | {"config": _CONFIGS[kind]}
    shape |= {"judged": _JUDGED} if kind == "segmenter" else {}
    check_content(path, content, shape, f"Give {NETWORK_FILES[kind]}.")
    return content


def run_facts(path: Path, content: Mapping[str, Any]) -> RunFacts:
    """The facts of the run that wrote a file.

    Args:
        path: Of the file, for messages.
        content: What it holds, as `read_network` returns it.

    Raises:
        UserError: If its classes or the scaling of its images make no sense.
    """
    scaling = ImageScaling(**content["scaling"])
    bands = list(zip(scaling.low, scaling.high, strict=False))
    try:
        if not len(bands) == len(scaling.low) == len(scaling.high) > 0:
            raise UserError("scaling: low and high need one number for every band.")
        if wrong := [(low, high) for low, high in bands if not low < high]:
            raise UserError(f"scaling: low={wrong[0][0]} is not less than high={wrong[0][1]}.")
        palette = Palette.from_dict(content["palette"])
    except UserError as error:
        raise UserError(f"{path} is damaged: {error} Train again.") from None
    return RunFacts(current_config(content["config"]), palette, scaling, content.get("data"))


def check_weights(path: Path, weights: Mapping[str, Tensor], network: nn.Module) -> None:
    """Refuses weights that are not a network's, or no numbers.

    Raises:
        UserError: Naming the first that is wrong.
    """
    wanted = network.state_dict()
    for name in sorted(wanted.keys() ^ weights.keys(), key=str):
        which = "lacks" if name in wanted else "has, in excess,"
        raise UserError(f"{path} is damaged: it {which} the weights '{name}'. Train again.")
    for name, value in weights.items():
        shape, own = list(value.shape), list(wanted[name].shape)
        if shape != own or value.is_floating_point() != wanted[name].is_floating_point():
            raise UserError(
                f"{path} is damaged: the weights '{name}' are {value.dtype} of shape {shape}, but "
                f"{own} is needed. Train again."
            )
        if not value.isfinite().all():
            raise UserError(
                f"{path} holds weights that are NaN or infinite ('{name}'). Use a checkpoint of an "
                "earlier epoch, or train again with a lower lr."
            )


def read_training_state(path: Path) -> dict[str, Any]:
    """Reads a `last.ckpt`; its tensors stay in the file until they are used.

    Raises:
        OSError: If it cannot be read.
        UserError: If it is not what a training of this project saves.
    """
    advice = "Its run cannot be continued: begin another one in a new out_dir."
    content = _load(path, advice, mmap=True)
    check_content(path, content, _STATE, advice)
    return content


def _load(path: Path, advice: str, mmap: bool = False) -> dict[str, Any]:
    """Reads a file of a network or a training: a dict of tensors and plain values."""
    try:
        if path.suffix == SAFETENSORS:
            content = _load_safetensors(path)
        else:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            # Unpacked it is never larger than the file.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if not isinstance(content, dict) or not _is_plain(content):
            raise ValueError
    except Exception as error:  # torch raises exceptions of many types for other files
        from_system = isinstance(error, ImportError) or (isinstance(error, OSError) and error.errno)
        if from_system or "allocate memory" in str(error):
            raise
        raise UserError(f"{path} is not a checkpoint of this project. {advice}") from None
    return content


def _load_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {**json.loads(file.metadata()[_ENTRY]), "weights": weights}


def _is_plain(content: Any) -> bool:
    """Whether what torch.load gave is of a size and depth that can be worked with.

    References can stand for far more values than the file has, and tensors for more than they hold.
    """
    waiting, count = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            return False
        if isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            waiting += [(part, depth + 1) for part in value]
        elif isinstance(value, Tensor) and not (
            (value.layout, value.device.type) == (torch.strided, "cpu")
            and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
        ):
            return False
    return True
