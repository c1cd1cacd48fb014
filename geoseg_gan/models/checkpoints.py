"""Saving and loading networks.

A network's file holds tensors and plain types only and is read with `weights_only=True`, so that
nothing in it can run code. Each is enough by itself: palette, image scaling and the training run's
configuration are stored beside the weights.
"""

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from geoseg_gan.data.batch import ImageScaling, one_hot_of, regions_of
from geoseg_gan.data.fingerprint import FINGERPRINTS, Fingerprints
from geoseg_gan.data.images import DTYPES
from geoseg_gan.data.palette import IGNORE, PALETTE, Palette, UnknownPolicy
from geoseg_gan.data.settings import Fit, MaskFormat
from geoseg_gan.models.discriminators.oasis import EXTRA_DISCRIMINATORS, changed_settings
from geoseg_gan.models.generators.noise import sample_noise
from geoseg_gan.models.onnx_segmenters import load_exported
from geoseg_gan.models.registry import Generator, build_generator
from geoseg_gan.models.segmenters import build_segmenter, segmenter_stride
from geoseg_gan.models.settings import current_config
from geoseg_gan.utils.device import named_device
from geoseg_gan.utils.distributed import rank_of_process
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_path
from geoseg_gan.utils.reading import Number, check_content, whole

ConfigT = TypeVar("ConfigT")
NetworkKind = Literal["generator", "discriminator", "segmenter"]

FORMATS: dict[NetworkKind, int] = {"generator": 2, "discriminator": 2, "segmenter": 1}
"""The format of each kind of file; it grows when older files can no longer be read."""

_FILES: dict[NetworkKind, str] = {
    "generator": "a generator checkpoint (G_e###.pt), which train writes",
    "discriminator": "a discriminator checkpoint (D_e###.pt), which train writes",
    "segmenter": "a segmenter checkpoint (segmenter.pt), which train_segmenter writes",
}

_IN_RUNS: dict[str, tuple[NetworkKind, ...]] = {
    "gen_ckpt": ("generator",),
    "init_from": ("generator",),
    "segmenter_ckpt": ("segmenter",),
    "ckpt": ("generator", "segmenter"),
}  # by the settings that name a file, or the folder of the run that wrote it

SAFETENSORS = ".safetensors"
"""The ending of files of that format; all others are those of torch.save."""

_ENTRY = "geoseg_gan"  # of a safetensors file's metadata: all but the weights, as JSON
_MOST_VALUES, _DEEPEST = 200_000, 100  # in a checkpoint, and levels of what lies in another

_PLAIN = (str, Number(), bool, None)
_SETTINGS = {"name": str, "*": _PLAIN}
_OPTION = (str, bool, None, Number(-(2**16), 2**16))
_RANGES = {"low": [Number()], "high": [Number()]}
_NETWORK = {
    "epoch": whole(),
    "weights": {"*": Tensor},
    "palette": PALETTE,
    "scaling": {**_RANGES, "dtype": set(DTYPES)},
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


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator in evaluation mode; called with a label map, it generates an image.

    Attributes:
        network: Gives images (B, K, H, W) in [-1, 1].
        facts: The run it comes from.
        epoch: How many epochs it was trained.
        digest: SHA-256 of its file, in hexadecimal.
    """

    network: Generator
    facts: RunFacts
    epoch: int
    digest: str

    @torch.inference_mode()
    def __call__(self, mask: npt.NDArray[np.uint8], seed: int = 0) -> npt.NDArray[Any]:
        """Generates an image.

        Args:
            mask: Label map of any shape (H, W), uint8: class IDs of the palette, 255 where ignored.
                Masked pixels of a masked array are ignored, too.
            seed: Fixes the noise; another one gives another image of the same mask.

        Returns:
            Shape (H, W, K), in the stored dtype of the training images.

        Raises:
            UserError: If the label map is not as described.
        """
        classes = self.facts.palette.num_classes
        _check_array("mask", mask)
        if not isinstance(seed, int | np.integer):
            raise UserError(f"seed is {seed!r}: give a whole number.")
        mask = np.ma.filled(mask, IGNORE)
        if mask.ndim != 2 or 0 in mask.shape or mask.dtype != np.uint8:
            raise UserError(
                f"mask is {mask.dtype} of shape {mask.shape}: give class IDs as uint8 of shape "
                "(H, W)."
            )
        if (unknown := mask[(mask >= classes) & (mask != IGNORE)]).size:
            raise UserError(
                f"mask holds class {unknown[0]}: use 0 to {classes - 1}, 255 to ignore."
            )
        device = next(cast(nn.Module, self.network).parameters()).device
        label = torch.from_numpy(_padded(mask, self.network.stride))[None]
        noise = sample_noise(self.network.noise, int(seed), [0], regions_of(label))
        image = self.network(one_hot_of(label.to(device), classes), noise.to(device))
        height, width = mask.shape
        return self.facts.scaling.to_stored(image[0, :, :height, :width])


@dataclass(frozen=True)
class LoadedSegmenter:
    """A segmenter in evaluation mode; called with an image, it finds the class of every pixel.

    Attributes:
        network: Gives logits (B, C, H, W) for images (B, K, H, W) in [-1, 1].
        facts: The run it comes from.
        evaluation: How good it is.
        epoch: How many epochs it was trained.
        digest: SHA-256 of the file, in hexadecimal.
    """

    network: nn.Module
    facts: RunFacts
    evaluation: SegmenterEvaluation
    epoch: int
    digest: str

    def __call__(self, image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """The likeliest class of every pixel: shape (H, W), uint8; see `probabilities`."""
        found: npt.NDArray[np.uint8] = self.probabilities(image).argmax(0).astype(np.uint8)
        return found

    @torch.inference_mode()
    def probabilities(self, image: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The probability of every class at every pixel.

        Args:
            image: Any shape (H, W, K), in the stored dtype of the training images.

        Returns:
            Shape (C, H, W), float32; they sum to 1 over the classes.

        Raises:
            UserError: If the image is of another shape or dtype.
        """
        scaling, bands = self.facts.scaling, len(self.facts.scaling.low)
        _check_array("image", image)
        shape = image.shape
        if (*shape[2:], image.dtype.name) != (bands, scaling.dtype) or 0 in shape:
            raise UserError(
                f"image is {image.dtype} of shape {shape}: this segmenter takes {scaling.dtype} of "
                f"shape (H, W, {bands})."
            )
        pixels = torch.from_numpy(_padded(image, segmenter_stride(self.network))).movedim(-1, 0)
        device = next(self.network.parameters(), torch.empty(0)).device
        logits: Tensor = self.network(scaling.to_network(pixels[None].to(device)))
        found = logits[0, :, : shape[0], : shape[1]].float().softmax(0).cpu().numpy()
        return cast(npt.NDArray[np.float32], found)


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray):
        raise UserError(f"{name} is of type {type(value).__name__}: give a NumPy array.")


def _padded(pixels: npt.NDArray[Any], stride: int) -> npt.NDArray[Any]:
    """The rows and columns (H, W, ...), reflected at their ends up to multiples of the stride."""
    ends = [(0, -side % stride) for side in pixels.shape[:2]]
    return np.pad(pixels, [*ends, *[(0, 0)] * (pixels.ndim - 2)], mode="reflect")


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


def with_files(config: ConfigT) -> ConfigT:
    """A command's configuration in which each run folder is replaced by its checkpoint.

    Of generators, that is the one of the latest epoch. A line says which file was taken.

    Raises:
        UserError: If a folder holds none.
    """
    files = {}
    for key, kinds in _IN_RUNS.items():
        given = getattr(config, key, None)
        if given is None or not Path(given).is_dir():
            continue
        file = network_file(Path(given), *kinds, shown=f"{key}={given}")
        files[key] = str(file)
        if rank_of_process() == 0:
            print(f"{key}={given} is a folder: using {file.name} in it.")
    return cast(ConfigT, replace(cast(Any, config), **files))


def network_file(path: Path, *kinds: NetworkKind, shown: str | None = None) -> Path:
    """A network's file: `path` itself or, where that is a run folder, the one in it.

    Of generators, that is the one of the latest epoch. Messages name the path as `shown`.

    Raises:
        UserError: If the folder holds none of these kinds.
    """
    if not path.is_dir():
        return path
    for kind in kinds:
        if (file := _file_in(path, kind)) is not None:
            return file
    wanted = " or ".join(_FILES[kind] for kind in kinds)
    raise UserError(
        f"{shown or path} is a folder without a checkpoint. Give {wanted}, or its run folder."
    )


def _file_in(folder: Path, kind: NetworkKind) -> Path | None:
    if kind == "segmenter":
        path = folder / "segmenter.pt"
        return path if path.is_file() else None
    found = folder.glob("G_e*.pt")
    files = [path for path in found if path.stem[3:].isdecimal() and path.is_file()]
    return max(files, key=lambda path: int(path.stem[3:]), default=None)


def load_network(path: Path) -> LoadedGenerator | LoadedSegmenter:
    """Reads a file that holds a generator or a segmenter, whichever it is.

    Raises:
        UserError: If there is no such file, or it is neither that this version can read.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist. Give a G_e###.pt or a segmenter.pt.")
    kind = _load(path, "Give a G_e###.pt or a segmenter.pt.").get("kind")
    return load_segmenter(path) if kind == "segmenter" else load_generator(path)


def load_generator(path: Path, device: torch.device | str = "cpu") -> LoadedGenerator:
    """Reads a `G_e###.pt` and builds its generator.

    Raises:
        UserError: If there is no such file or device, or it is not a generator this version can
            read.
    """
    content = _read(path, "generator")
    facts = _facts(path, content)
    settings: Mapping[str, Any] = facts.config["model"]["generator"]
    sizes = facts.palette.num_classes, len(facts.scaling.low)
    network, digest = _finish(lambda: build_generator(settings, *sizes), path, content, device)
    return LoadedGenerator(cast(Generator, network), facts, content["epoch"], digest)


def load_segmenter(path: Path, device: torch.device | str = "cpu") -> LoadedSegmenter:
    """Reads a `segmenter.pt` and builds its network, or a `segmenter.onnx` that export wrote.

    Raises:
        UserError: If there is no such file or device, or it is not a segmenter this version can
            read.
    """
    if path.suffix.lower() == ".onnx":
        shape = {"palette": PALETTE, "scaling": _RANGES, "dtype": set(DTYPES)}
        model, said, digest = load_exported(path, shape | {"fit?": set(get_args(Fit))})
        config = {"image_size": said["tile_size"], "data": {"fit": said.get("fit", "crop")}}
        content = {"palette": said["palette"], "config": config}
        content["scaling"] = said["scaling"] | {"dtype": said["dtype"]}
        return LoadedSegmenter(model, _facts(path, content), SegmenterEvaluation([], {}), 0, digest)
    content = _read(path, "segmenter")
    facts = _facts(path, content)
    settings: Mapping[str, Any] = facts.config["segmenter"]
    sizes = facts.palette.num_classes, len(facts.scaling.low)
    network, digest = _finish(
        lambda: build_segmenter(settings, *sizes, pretrained=False), path, content, device
    )
    # Older files also hold class losses.
    known = {f.name: content["judged"][f.name] for f in fields(SegmenterEvaluation)}
    evaluation = SegmenterEvaluation(**known)
    return LoadedSegmenter(network, facts, evaluation, content["epoch"], digest)


def start_from(path: Path, generator: nn.Module, discriminator: nn.Module, facts: RunFacts) -> None:
    """Loads the weights of another run into the networks of a new one, e.g. for larger images.

    Args:
        path: A `G_e###.pt`. The `D_e###.pt` of the same epoch beside it is loaded into the
            discriminator; without it, as beside `G_best.pt`, that keeps its initial weights.
        generator: Changed in place.
        discriminator: Changed in place; its extra discriminators (see `EXTRA_DISCRIMINATORS`) keep
            their initial weights where the other run's settings of them differ.
        facts: The new run.

    Raises:
        UserError: If the file is no generator, or the new run's networks, classes or bands are not
            those of the run it is from.
    """
    d_path = path.with_name(f"D{path.name[1:]}")
    wanted: list[tuple[NetworkKind, Path, nn.Module]] = [("generator", path, generator)]
    if d_path.is_file():
        wanted.append(("discriminator", d_path, discriminator))
    for kind, source, network in wanted:
        content = _read(source, kind)
        theirs = _facts(source, content)
        if theirs.palette.to_dict()["classes"] != facts.palette.to_dict()["classes"]:
            raise UserError(f"init_from: {source} was trained on other classes than data= has.")
        settings, own = theirs.config["model"][kind], facts.config["model"][kind]
        for key in changed_settings(own, settings):
            raise UserError(
                f"init_from: {source} has model.{kind}.{key}={settings.get(key)}, not "
                f"{own[key]}. Give its settings, or use init_from=null."
            )
        if len(theirs.scaling.low) != len(facts.scaling.low):
            raise UserError(
                f"init_from: {source} was trained on images of {len(theirs.scaling.low)} bands, "
                f"and these have {len(facts.scaling.low)}."
            )
        new = {key for key in EXTRA_DISCRIMINATORS if settings.get(key) != own.get(key)}
        shared = {n: w for n, w in content["weights"].items() if n.split(".")[0] not in new}
        weights = network.state_dict() | shared
        _check_weights(source, weights, network)
        network.load_state_dict(weights)
    if not d_path.is_file():
        warnings.warn(
            f"{d_path} does not exist: the discriminator starts with new weights.", stacklevel=2
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


def _facts(path: Path, content: Mapping[str, Any]) -> RunFacts:
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


def _finish(
    build: Callable[[], nn.Module],
    path: Path,
    content: Mapping[str, Any],
    device: torch.device | str,
) -> tuple[nn.Module, str]:
    """Builds the network whose weights a file holds; returns it with the file's digest."""
    device, weights, config = named_device(device), content["weights"], content["config"]
    # Mix Transformers read values of tensors when they are built.
    on_cpu = config.get("segmenter", {}).get("encoder", "").startswith("mit_")
    try:
        if not on_cpu:
            with torch.device("meta"):  # without memory, whatever size the configuration asks for
                size = sum(parameter.numel() for parameter in build().parameters())
            if size > (held := sum(value.numel() for value in weights.values())):
                raise UserError(f"its network has {size:,} parameters, but it holds {held:,}.")
        network = build()
        _check_weights(path, weights, network)
    except UserError as error:
        text = str(error) if str(path) in str(error) else f"{path} cannot be used: {error}"
        raise UserError(text) from None
    network.load_state_dict(weights)
    network.to(device).eval().requires_grad_(False)
    with path.open("rb") as file:
        return network, hashlib.file_digest(file, "sha256").hexdigest()


def _check_weights(path: Path, weights: Mapping[str, Tensor], network: nn.Module) -> None:
    """Refuses weights that are not a network's, or no numbers."""
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


def _read(path: Path, kind: NetworkKind) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} does not exist. Give {_FILES[kind]}.")
    content = _load(path, f"Give {_FILES[kind]}.")
    if "format" not in content or "kind" not in content:
        raise UserError(f"{path} is not a checkpoint of this project. Give {_FILES[kind]}.")
    if content["kind"] != kind:
        raise UserError(
            f"{path} holds a {content['kind']}, but a {kind} is needed: give {_FILES[kind]}."
        )
    if content["format"] != FORMATS[kind]:
        raise UserError(
            f"{path} has format {content['format']}, but this version reads format "
            f"{FORMATS[kind]}. Use the version of geoseg-gan that wrote it, or train again."
        )
    shape = _NETWORK | {"config": _CONFIGS[kind]}
    shape |= {"judged": _JUDGED} if kind == "segmenter" else {}
    check_content(path, content, shape, f"Give {_FILES[kind]}.")
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
