"""The export command: a generator or segmenter as files that other programs open."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.progress import track

from geoseg_gan.config import is_made, plain
from geoseg_gan.export import hub, onnx_models
from geoseg_gan.export.card import model_card
from geoseg_gan.export.settings import ExportConfig
from geoseg_gan.models.checkpoints import NetworkKind, RunFacts, save_network
from geoseg_gan.models.loaded import LoadedGenerator, LoadedSegmenter, load_network, with_files
from geoseg_gan.training.runs import read_outcome
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import atomic_folder, check_new_folder, write_json
from geoseg_gan.utils.reading import read_json

EXPORT = "export.json"
"""What the files were made of and how, and how far they are from the network."""

WEIGHTS = "model.safetensors"
DEEPNESS = "deepness.onnx"
CARD = "README.md"

_PATHS = ("data_root", "out_dir", "init_from", "segmenter_ckpt", "split_file", "synthetic")
_OVERLAP = 15  # percent of a tile, Deepness' own default


def export(config: ExportConfig) -> dict[str, float]:
    """Writes a network in the formats that are asked for, whole or not at all.

    Returns:
        "onnx_difference": how far ONNX Runtime is from PyTorch, at most; empty without ONNX.

    Raises:
        UserError: If the checkpoint cannot be read or exported, `out_dir` holds something else, or
            the Hub refuses it.
    """
    config = with_files(config)
    path, out_dir = Path(config.ckpt), Path(config.out_dir)
    loaded = load_network(path)
    # Neither folders of this machine nor where it is sent are part of what the files are.
    settings = {key: plain(config)[key] for key in ("formats", "opset", "licence")}
    settings |= {"checkpoint": loaded.digest, "version": version("geoseg-gan")}
    stored = _stored(out_dir)
    if is_made(out_dir, settings, stored and stored["settings"]):
        figures: dict[str, float] = stored["figures"] if stored else {}
    else:
        check_new_folder("out_dir", out_dir)
        if "onnx" in config.formats:
            onnx_models.require_onnx()
        figures = _write(config, loaded, settings)
    if config.push is not None:
        print(f"Sent {out_dir} to {hub.push(out_dir, config.push)}.")
    return figures


def _stored(folder: Path) -> dict[str, Any] | None:
    """What the folder says of itself; None where it is not an export."""
    path = folder / EXPORT
    shape = {"settings": dict, "figures": {"*": float}}
    return dict(read_json(path, shape, "Choose another out_dir.")) if path.is_file() else None


def _write(
    config: ExportConfig, loaded: LoadedGenerator | LoadedSegmenter, settings: Mapping[str, Any]
) -> dict[str, float]:
    kind: NetworkKind = "generator" if isinstance(loaded, LoadedGenerator) else "segmenter"
    public = replace(loaded, facts=_public(loaded.facts))
    figures: dict[str, float] = {}
    with atomic_folder(Path(config.out_dir), "out_dir") as folder:
        for name in track(config.formats, f"Exporting the {kind}"):
            if name == "onnx":
                figures["onnx_difference"] = _write_onnx(folder, public, config)
            elif name == "safetensors":
                evaluation = getattr(public, "evaluation", None)
                network: Any = public.network
                path = folder / WEIGHTS
                save_network(path, kind, network, public.facts, public.epoch, evaluation)
            else:
                outcome = read_outcome(Path(config.ckpt).parent) if kind == "generator" else None
                text = model_card(public, config.licence, config.formats, outcome)
                (folder / CARD).write_text(text, encoding="utf-8")
        write_json(folder / EXPORT, {"settings": settings, "figures": figures})
        names = ", ".join(sorted(file.name for file in folder.iterdir()))
    print(f"Exported the {kind} {config.ckpt} to {config.out_dir}: {names}.")
    return figures


def _public(facts: RunFacts) -> RunFacts:
    """The facts of a run without the folders of this machine, of which the last names stay."""

    def named(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: named(name, inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [named(key, inner) for inner in value]
        return Path(value).name if key in _PATHS and isinstance(value, str) else value

    return replace(facts, config=named("", facts.config))


def _write_onnx(
    folder: Path, loaded: LoadedGenerator | LoadedSegmenter, config: ExportConfig
) -> float:
    """Writes the models, as far as they agree with the network; returns the largest difference."""
    facts = loaded.facts
    entries = {
        "producer": f"geoseg-gan {version('geoseg-gan')}",
        "licence": config.licence,
        "checkpoint_sha256": loaded.digest,
        "palette": facts.palette.to_dict(),
        "scaling": {"low": facts.scaling.low, "high": facts.scaling.high},
        "dtype": facts.scaling.dtype,
    }
    if isinstance(loaded, LoadedGenerator):
        model: Any = onnx_models.GeneratorModel(loaded)
        spec = loaded.network.noise
        noise = {"style": spec.style, "texture": spec.texture, "region": spec.region}
        entries |= {"stride": model.stride, "noise": noise}
        name = "generator.onnx"
    else:
        model = onnx_models.SegmenterModel(loaded)
        fit = facts.config.get("data", {}).get("fit", "crop")
        entries |= {"stride": model.stride, "fit": fit, **deepness_metadata(loaded)}
        name = "segmenter.onnx"
    exported = onnx_models.with_metadata(onnx_models.to_onnx(model, config.opset), entries)
    content = exported.SerializeToString()
    (folder / name).write_bytes(content)
    difference = onnx_models.largest_difference(content, model)
    if isinstance(loaded, LoadedSegmenter):
        size = loaded.facts.config["image_size"]
        content = onnx_models.fixed(exported, size).SerializeToString()
        (folder / DEEPNESS).write_bytes(content)
        square = [(1, size // model.stride, size // model.stride)]
        difference = max(difference, onnx_models.largest_difference(content, model, square))
    if not difference <= onnx_models.TOLERANCE:
        raise UserError(
            f"{name}, with opset={config.opset}, differs by {difference:.2g} from the network in "
            f"{config.ckpt}, more than {onnx_models.TOLERANCE:g}. Try another opset, or leave onnx "
            "out of formats."
        )
    return difference


def deepness_metadata(loaded: LoadedSegmenter) -> dict[str, Any]:
    """What QGIS' Deepness plugin reads from a model, to be kept as JSON.

    Deepness divides by 255, whatever the images are, and then standardises; mean and standard
    deviation are such that the network gets [-1, 1].
    """
    scaling, config = loaded.facts.scaling, loaded.facts.config
    bands = list(zip(scaling.low, scaling.high, strict=True))
    entries = {
        "model_type": "Segmentor",
        "class_names": dict(enumerate(loaded.facts.palette.names)),
        "tile_size": config["image_size"],
        "tiles_size": config["image_size"],  # the documented name of what it reads as tile_size
        "tiles_overlap": _OVERLAP,
        "standardization_mean": [(low + high) / 2 / 255 for low, high in bands],
        "standardization_std": [(high - low) / 2 / 255 for low, high in bands],
        # Below a threshold, and where segments are small, it would take another class.
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
    }
    gsd = config.get("data", {}).get("gsd")
    return entries | ({} if gsd is None else {"resolution": 100 * gsd})  # centimetres a pixel
