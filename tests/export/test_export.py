import contextlib
import io
import json
import re
import subprocess
import sys
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from defaults import defaults

import geoseg_gan as gg
from geoseg_gan.data.batch import ImageScaling, regions_of
from geoseg_gan.export.export import export
from geoseg_gan.models.checkpoints import RunFacts, SegmenterEvaluation, save_network
from geoseg_gan.models.generators.noise import draw_noise, sample_noise
from geoseg_gan.models.registry import build_generator
from geoseg_gan.models.segmenters import build_segmenter
from geoseg_gan.synthesis.recognizer import load_recognizer, pixel_losses
from geoseg_gan.synthesis.settings import OnnxSettings
from geoseg_gan.utils.errors import UserError, install
from geoseg_gan.utils.files import write_json

BYTES = ImageScaling([0] * 3, [255] * 3)
SETTINGS = {
    "arch": "unet",
    "encoder": "mobilenet_v2",
    "encoder_weights": None,
    "options": {"encoder_depth": 3, "decoder_channels": [8, 8, 8]},
    "image_scale": 1.0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config, palette):
    """A folder with a generator, its figures and a segmenter."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config = tiny_config | {"data_root": "/home/somebody/fields"}
    generator = build_generator(config["model"]["generator"], 3, 3)
    facts = RunFacts(config, palette, BYTES)
    save_network(folder / "G_e002.pt", "generator", generator, facts, 2)
    write_json(folder / "result.json", {"objective": None, "epochs": 2, "figures": {"kid": 0.25}})
    config = {"segmenter": SETTINGS, "image_size": 32, "data": {"gsd": 0.3}, "data_root": "/x/f"}
    judged = SegmenterEvaluation([0.5], {"val/miou": 0.625, "val/iou/Woods": float("nan")})
    facts = RunFacts(config, palette, BYTES)
    save_network(
        folder / "segmenter.pt", "segmenter", build_segmenter(SETTINGS, 3, 3), facts, 4, judged
    )
    return folder


@pytest.fixture(scope="module")
def exported(run, composed):
    """The folder of an export: `exported("G_e002.pt")`."""

    def of(name):
        out = run / f"{Path(name).stem}_export"
        if not out.exists():
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                export(composed("export", f"ckpt={run / name}", f"out_dir={out}"))
            assert said.getvalue() == ""
        return out

    return of


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def metadata(session):
    entries = session.get_modelmeta().custom_metadata_map
    return {key: json.loads(value) for key, value in entries.items()}


def a_mask(height, width):
    mask = np.random.default_rng(0).integers(0, 4, (height // 4, width // 4), np.uint8)
    mask = mask.repeat(4, 0).repeat(4, 1)
    return np.where(mask == 3, 255, mask).astype(np.uint8)


def an_image(height, width):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def test_the_generator_s_model_gives_its_images_in_any_size(run, exported):
    folder, loaded = exported("G_e002.pt"), gg.load_generator(run / "G_e002.pt")
    names = ["README.md", "export.json", "generator.onnx", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    session, spec = session_of(folder / "generator.onnx"), loaded.network.noise
    shapes = {entry.name: (entry.type, entry.shape) for entry in session.get_inputs()}
    assert shapes == {
        "label": ("tensor(uint8)", ["batch", "height", "width"]),
        "noise": ("tensor(float)", ["batch", spec.channels, "height", "width"]),
    }
    assert session.get_outputs()[0].shape == ["batch", 3, "height", "width"]
    for height, width in ((16, 40), (64, 32)):
        mask = a_mask(height, width)
        label = torch.from_numpy(mask)[None]
        noise = sample_noise(spec, 5, [0], regions_of(label)).numpy()
        (images,) = session.run(None, {"label": mask[None], "noise": noise})
        expected = loaded(mask, seed=5)
        assert abs(images[0].transpose(1, 2, 0) - expected).max() < 0.51  # which is rounded
    entries = metadata(session)
    assert entries["noise"] == {"style": 16, "texture": 5, "region": 16}
    assert (entries["stride"], entries["checkpoint_sha256"]) == (4, loaded.digest)


def test_models_state_their_opset_and_hold_no_paths(exported):
    for path in (
        exported("G_e002.pt") / "generator.onnx",
        exported("segmenter.pt") / "deepness.onnx",
    ):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
        assert b".py" not in path.read_bytes() and b"/home" not in path.read_bytes()
    assert b"/home" not in (exported("G_e002.pt") / "model.safetensors").read_bytes()


def test_the_segmenter_s_model_decides_as_its_checkpoint_in_generate_too(run, exported, palette):
    folder, loaded = exported("segmenter.pt"), gg.load_segmenter(run / "segmenter.pt")
    session = session_of(folder / "segmenter.onnx")
    image = an_image(40, 64)
    values = image.transpose(2, 0, 1)[None].repeat(2, 0) / np.float32(127.5) - 1
    (found,) = session.run(None, {"image": values})
    assert found.shape == (2, 3, 40, 64)
    np.testing.assert_allclose(found[1], loaded.probabilities(image), atol=1e-5)
    like = (palette, BYTES, 64, "cpu", None)
    own = load_recognizer(run / "segmenter.pt", *like, defaults(OnnxSettings))
    other = load_recognizer(folder / "segmenter.onnx", *like, OnnxSettings([0.5], [0.5]))
    image, mask = an_image(64, 64), a_mask(64, 64)
    logits = [recognizer.logits(image) for recognizer in (own, other)]
    assert torch.equal(*(one.argmax(0) for one in logits))
    torch.testing.assert_close(*(pixel_losses(mask, one) for one in logits), atol=1e-4, rtol=1e-4)


def test_deepness_decides_as_the_checkpoint(run, exported):
    """By its documentation: what it reads, how it scales, and that sizes are fixed and square."""
    session = session_of(exported("segmenter.pt") / "deepness.onnx")
    assert session.get_inputs()[0].shape == [1, 3, 32, 32]
    assert session.get_outputs()[0].shape == [1, 3, 32, 32]
    entries = metadata(session)
    assert (entries["model_type"], entries["seg_thresh"]) == ("Segmentor", 0)
    assert list(entries["class_names"].items())[1] == ("1", "Forest land")
    assert (entries["tile_size"], entries["resolution"]) == (32, 30)  # pixels, cm a pixel
    tile = an_image(32, 32)
    mean, std = (np.float32(entries[f"standardization_{key}"]) for key in ("mean", "std"))
    values = (np.float32(tile[None] * 1.0 / 255.0) - mean) / std
    (found,) = session.run(None, {"image": values.transpose(0, 3, 1, 2)})
    assert (found.argmax(1)[0] == gg.load_segmenter(run / "segmenter.pt")(tile)).all()


def test_safetensors_are_loaded_like_the_checkpoint(run, exported):
    mask, image = a_mask(20, 24), an_image(20, 24)
    own = gg.load_generator(exported("G_e002.pt") / "model.safetensors")
    assert (own(mask) == gg.load_generator(run / "G_e002.pt")(mask)).all()
    assert (own.epoch, own.facts.config["data_root"]) == (2, "fields")
    own = gg.load_segmenter(exported("segmenter.pt") / "model.safetensors")
    assert (own(image) == gg.load_segmenter(run / "segmenter.pt")(image)).all()
    assert (own.evaluation.held_out, own.evaluation.scores["val/miou"]) == ([0.5], 0.625)


def test_the_card_says_what_the_hub_and_people_ask(exported):
    card = (exported("segmenter.pt") / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("unknown", "geoseg-gan")
    assert front["pipeline_tag"] == "image-segmentation" and "onnx" in front["tags"]
    for line in (
        "| 1 | Forest land | #a8e854 |",
        "0.3 m a pixel",
        "| val/miou | 62.5 % |",
        "| epochs | 4 |",
    ):
        assert line in card
    assert "nan" not in card
    assert "| kid | 0.25 |" in (exported("G_e002.pt") / "README.md").read_text()


def code_of(folder):
    (code,) = re.findall(
        r"alone:\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL
    )
    return code


def test_the_card_s_code_makes_the_noise_that_the_generator_was_trained_with(exported):
    spec, mask = (
        gg.load_generator(exported("G_e002.pt") / "model.safetensors").network.noise,
        a_mask(36, 52),
    )
    labels = np.stack([mask, mask[::-1]])
    drawn = draw_noise(spec, 3, [0], mask.shape).numpy()[0]

    class Given:
        """The numbers of `draw_noise`, one after the other, for the first image."""

        def __init__(self):
            self.left = drawn

        def standard_normal(self, shape):
            count = int(np.prod(shape[1:]))
            own, self.left = self.left[:count].reshape(1, *shape[1:]), self.left[count:]
            return np.concatenate([own, own])

    names = {"__name__": "card"}
    code = code_of(exported("G_e002.pt")).replace(
        '"generator.onnx"', repr(str(exported("G_e002.pt") / "generator.onnx"))
    )
    exec(code, names)
    found = names["make_noise"](labels, Given())
    expected = sample_noise(spec, 3, [0], torch.from_numpy(mask)[None])
    np.testing.assert_allclose(found[:1], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "call", "shape"),
    [
        ("G_e002.pt", "generate(np.zeros((32, 64), np.uint8), seed=1)", "(32, 64, 3) uint8"),
        ("segmenter.pt", "predict(np.zeros((32, 64, 3), np.uint8))", "(32, 64) int64"),
    ],
)
def test_the_card_s_code_runs_where_there_is_only_onnx_runtime(
    exported, tmp_path, name, call, shape
):
    for package in ("numpy", "onnxruntime"):
        place = Path(sys.modules[package].__file__).parents[1]
        for part in place.glob(f"{package}*"):
            (tmp_path / part.name).symlink_to(part)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code_of(exported(name))}\n"
        f"found = {call}\nprint(found.shape, found.dtype)\n"
        "assert not {'torch', 'onnx', 'geoseg_gan'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, cwd=exported(name), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{shape}\n"), done.stderr


def test_the_same_command_again_has_nothing_to_do_and_another_is_refused(
    run, exported, composed, capsys
):
    out = exported("segmenter.pt")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    arguments = (f"ckpt={run / 'segmenter.pt'}", f"out_dir={out}")
    assert export(composed("export", *arguments))["onnx_difference"] < 1e-4
    assert "is there already, made with these settings" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"out_dir=.* exists already"):
        export(composed("export", *arguments, "opset=20"))
    with pytest.raises(UserError, match=r"out_dir=.* exists already"):  # another checkpoint
        export(composed("export", f"ckpt={run / 'G_e002.pt'}", f"out_dir={out}"))
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def test_what_is_not_installed_is_named_in_one_line(run, composed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    arguments = f"ckpt={run / 'G_e002.pt'}", f"out_dir={tmp_path / 'out'}"
    with pytest.raises(UserError, match=f"not installed: {re.escape(install('export'))}\\.$"):
        export(composed("export", *arguments))
    assert not list(tmp_path.iterdir())
    export(composed("export", *arguments, "formats=[card]"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "export.json",
    ]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("formats=[onxx]", "formats=onxx is not one of .*Did you mean 'onnx'"),
        ("formats=[]", "formats=.*: name one or more"),
        ("opset=16", "opset=16: use 17 to 20"),
        ("licence=my own", "licence=my own"),
        ("push=somewhere", "push=somewhere: name the repository as user/name"),
    ],
)
def test_settings_that_cannot_be_are_refused(composed, setting, message):
    with pytest.raises(UserError, match=message):
        composed("export", "ckpt=G.pt", setting)


def test_neither_a_missing_file_nor_a_discriminator_is_exported(run, composed, tmp_path):
    torch.save({"kind": "discriminator", "format": 2}, run / "D_e002.pt")
    for name, message in (
        ("none.pt", "does not exist"),
        ("D_e002.pt", "holds a discriminator"),
        ("result.json", "not a checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            export(composed("export", f"ckpt={run / name}", f"out_dir={tmp_path / 'out'}"))
    assert not list(tmp_path.iterdir())


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload of small files needs."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers.get("Authorization") != "Bearer hf_secret":
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            return self.answer({"url": f"{self.server.address}/somebody/fields"})
        if self.path == "/api/validate-yaml":  # of the card
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            paths = [entry["path"] for entry in json.loads(body)["files"]]
            files = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files |= {f["path"]: b64decode(f["content"]) for f in files}
            place = f"{self.server.address}/somebody/fields/commit/1"
            answer = {"commitUrl": place, "commitOid": "1" * 40}
            return self.answer(answer | {"hookOutput": "", "success": True})
        return self.answer({}, 404)

    def do_GET(self):
        self.answer({"sha": "0" * 40, "siblings": [], "id": "somebody/fields"})

    def answer(self, content, code=200):
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hub on the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.files = [], {}
    server.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_folder_is_sent_to_a_private_repository_of_the_hub(
    run, exported, composed, hub, monkeypatch, capsys
):
    out = exported("G_e002.pt")
    command = composed(
        "export", f"ckpt={run / 'G_e002.pt'}", f"out_dir={out}", "push=somebody/fields"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(
        UserError, match=r"^push=somebody/fields has failed .*hf auth login"
    ) as caught:
        export(command)
    assert "\n" not in str(caught.value)
    assert hub.files == {}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    export(command)
    assert f"Sent {out} to {hub.address}/somebody/fields" in capsys.readouterr().out
    (repository,) = hub.created
    assert (repository["organization"], repository["name"]) == ("somebody", "fields")
    assert repository.get("private") or repository.get("visibility") == "private"
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}
