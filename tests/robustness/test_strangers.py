"""Files of strangers: none runs code, reaches another file or address, or takes all memory."""

import io
import itertools
import pickle
import resource
import shutil
import socket
import struct
import threading
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from attempts import Attempts
from cases import ALONE, CASES, GENERATE, NETWORKS, PALETTE, TINY, made, prepared
from PIL import Image
from processes import members, start

pytestmark = pytest.mark.filterwarnings("default")

SCANS = {
    "train": (PALETTE, *NETWORKS, *TINY, *ALONE, "data_root=data", "out_dir=out", "epochs=1"),
    "tile": (PALETTE, "source=data/train", "data_root=out", "tile_size=16"),
    "pack": (PALETTE, "data_root=data", "out_dir=out"),
}
"""Commands that read the pictures of a folder."""


@pytest.fixture
def attempts(monkeypatch, capfd, tmp_path, make_folder):
    """Commands in a folder with data, which may not write elsewhere in `tmp_path`."""
    make_folder(tmp_path / "work" / "data", train=4, val=2)
    return Attempts(monkeypatch, capfd, tmp_path / "work")


@pytest.fixture
def listener():
    """A socket on the loopback address, and the connections that it has seen."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        done = threading.Event()

        def accept():
            while not done.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                seen.append(connection.recv(200))
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1], seen
        done.set()
        thread.join()


def vrt(source):
    return (
        '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    ).encode()


def wms(port, cache):
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:{port}/${{z}}/${{x}}.png'
        "</ServerUrl></Service><DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>0</UpperLeftY>"
        "<LowerRightX>64</LowerRightX><LowerRightY>64</LowerRightY><TileLevel>0</TileLevel>"
        "<SizeX>64</SizeX><SizeY>64</SizeY></DataWindow><BandsCount>3</BandsCount>"
        f"<Cache><Path>{cache}</Path></Cache></GDAL_WMS>"
    ).encode()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


KINDS = ("file", "url", "zip", "wms", "eps", "png")
FAST = {("url", "train", "images"), ("eps", "pack", "masks"), ("wms", "tile", "images")}


def some(*choices, fast):
    """All combinations of choices as parameters, of which only some are `fast`."""
    combinations = itertools.product(*choices)
    return [pytest.param(*c, marks=() if c in fast else pytest.mark.slow) for c in combinations]


@pytest.mark.parametrize(
    ("kind", "command", "part"), some(KINDS, SCANS, ("images", "masks"), fast=FAST)
)
def test_a_picture_is_only_what_its_name_says(
    kind, command, part, attempts, listener, tmp_path, monkeypatch, record_property
):
    port, seen = listener
    secret = tmp_path / "secret.png"
    Image.fromarray(np.full((64, 64), 1, np.uint8)).save(secret)
    (tools := tmp_path / "tools").mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ghostscript\nexit 1\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    content = {
        "file": vrt(secret),
        "url": vrt(f"/vsicurl/http://127.0.0.1:{port}/a.tif"),
        "zip": vrt(f"/vsizip//vsicurl/http://127.0.0.1:{port}/a.zip"),
        "wms": wms(port, tmp_path / "cache"),
        "eps": EPS,
        "png": secret.read_bytes(),
    }[kind]
    replace_one(Path("data/train") / part, ".png" if kind == "eps" else ".tif", content)
    before = {path.name for path in tmp_path.iterdir()}
    assert attempts.faults(command, *SCANS[command]) == ""
    assert seen == [] and {path.name for path in tmp_path.iterdir()} == before
    record_property("exploits: formats", 1)


def replace_one(folder, suffix, content):
    """Puts a stranger's file in the place of a picture."""
    victim = min(folder.iterdir())
    victim.unlink()
    victim.with_suffix(suffix).write_bytes(content)


class Touch:
    """Unpickling one makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def evil(path, kind, mark):
    """Writes a file of a kind that runs code where it is unpickled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "pickle":
            path.write_bytes(pickle.dumps(Touch(mark)))
        case "torch":
            torch.save({"format": 2, "kind": "generator", "weights": Touch(mark)}, path)
        case "npz":
            with path.open("wb") as target:
                np.savez(target, stems=np.array([Touch(mark)], object))


NETWORK_FILES = {
    "gen_ckpt": ("generate", ("gen_ckpt=evil.pt", "data_root=data", "save_dir=out")),
    "evaluate": ("evaluate", ("gen_ckpt=evil.pt", "data_root=data", "out_dir=out")),
    "init_from": ("train", (*SCANS["train"], "init_from=evil.pt")),
    "resume": ("train", (*SCANS["train"], "resume=true")),
    "segmenter": (
        "train",
        (*SCANS["train"], "evaluate_every=1", "inner_share=0.5", "segmenter_ckpt=evil.pt"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "place"), some(("pickle", "torch", "npz"), NETWORK_FILES, fast={("torch", "gen_ckpt")})
)
def test_networks_are_no_programs(kind, place, attempts, tmp_path, record_property):
    mark = tmp_path / "ran"
    for path in ("evil.pt", "out/last.ckpt") if place == "resume" else ("evil.pt",):
        evil(Path(path), kind, mark)
    name, arguments = NETWORK_FILES[place]
    assert attempts.faults(name, *arguments) == ""
    assert not mark.exists()
    record_property("exploits: pickles", 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pickle", "npz"])
@pytest.mark.parametrize("place", ["scan", "stream", "result"])
def test_arrays_are_no_programs(kind, place, attempts, tmp_path, monkeypatch, record_property):
    mark, cache = tmp_path / "ran", tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert attempts.faults("pack", *SCANS["pack"], mistake=False) == ""
    name, arguments, mistake = "pack", (*SCANS["pack"][:-1], "out_dir=out2"), False
    victims = list(cache.rglob("scan-*.npz"))
    if place == "stream":
        victims = list(Path("out/train").glob("*.npz"))
        stream = ("data_root=out", "data.format=stream", "data.cache=none", "out_dir=run")
        name, arguments, mistake = "train", (*SCANS["train"], *stream), True
    if place == "result":
        victims = [Path("trial/results/real/seed_000.npz")]
        tiny = CASES["trial"][1]
        arguments = (*tiny, "data_root=data", "out_dir=trial", "train_tiles=4")
        name, mistake = "trial", True
    assert victims
    for victim in victims:
        evil(victim, kind, mark)
    assert attempts.faults(name, *arguments, mistake=mistake) == ""
    assert not mark.exists()
    record_property("exploits: pickles", 1)


CONFIGS = {
    "callback": "hydra:\n  callbacks: {a: {_target_: pathlib.Path.touch, self: MARK}}\n",
    "package": "# @package hydra.callbacks\na: {_target_: pathlib.Path.touch, self: MARK}\n",
    "python": "epochs: !!python/object/apply:os.mkdir [MARK]\n",
    "target": "jitter: {_target_: os.mkdir, path: MARK}\n",
    "escaped": '"hydr\\x61": {"callbacks": {"a": {"_targ\\x65t_": "os.mkdir"}}}\n',
    "launcher": "defaults:\n  - override /hydra/launcher: joblib\n",
    "searchpath": "hydra:\n  searchpath: [file:///tmp]\n",
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in pairwise("abcdefghi")),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_settings_are_no_programs(kind, attempts, tmp_path, record_property):
    mark = tmp_path / "ran"
    text = CONFIGS[kind].replace("MARK", str(mark))
    package = "" if text.startswith("# @") else "# @package _global_\n"
    (own := Path("own/experiment")).mkdir(parents=True)
    (own / "mine.yaml").write_text(package + text)
    run = ("--config-dir", "own", *SCANS["train"], "experiment=mine")
    assert attempts.faults("train", *run) == ""
    assert not mark.exists()
    record_property("exploits: settings", 1)


LINKS = {
    "train": (SCANS["train"], (".lock", "config.yaml", "last.ckpt", "result.json", "G_e001.pt")),
    "generate": (
        (*GENERATE, "data_root=data", "num_samples=2", "num_workers=0"),
        (".lock", "manifest.jsonl", "generation.json", "contact_sheet.png", "pair_00000_img.jpg"),
    ),
    "tile": (SCANS["tile"], ("", "tiles.csv")),
    "pack": (SCANS["pack"], ("", "stream.json")),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "name"),
    [(command, name) for command, (_, names) in LINKS.items() for name in names],
)
def test_links_are_not_followed_on_writing(
    command, name, attempts, places, tmp_path, record_property
):
    shutil.copytree(made(places, "run"), tmp_path / "run")
    (victim := tmp_path / "victim").mkdir()
    for kept in ("file", "images"):
        (victim / kept).write_text("mine")
    Path("out").mkdir()
    target = victim / "file"
    if name:
        Path("out", name).symlink_to(target)
    else:
        Path("out").rmdir()
        Path("out").symlink_to(victim)
    attempts.faults(command, *LINKS[command][0], mistake=False)
    assert attempts.code in (0, 1) and "Traceback" not in attempts.text
    assert {path.name: path.read_text() for path in victim.iterdir()} == {
        "file": "mine",
        "images": "mine",
    }
    record_property("exploits: links", 1)


def sparse_tiff(side):
    """A GeoTIFF that says it has side x side pixels, and holds none."""
    entries = [
        (256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 0),
        (277, 3, 1), (278, 4, side), (279, 4, 0),
    ]  # fmt: skip
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + rows + bytes(4)


def png_bomb(side):
    """A PNG that says it has side x side pixels, in a few bytes."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10**6))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def npz_bomb():
    """An npz whose array says it has 40 GB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (4 * 10**10,)}
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("stems", "pixels", "sizes", "index"):
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(10**7))
    return packed.getvalue()


BOMBS = {"tif": sparse_tiff(200_000), "png": png_bomb(100_000)}
MEMORY = 400 * 2**20


@pytest.mark.parametrize(
    ("kind", "command", "part"),
    some(BOMBS, SCANS, ("images", "masks"), fast={("tif", "pack", "images")}),
)
def test_sizes_are_bounded_before_pixels_are_read(kind, command, part, attempts, record_property):
    replace_one(Path("data/train") / part, f".{kind}", BOMBS[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert attempts.faults(command, *SCANS[command]) == ""
    assert "out of memory" not in attempts.text
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MEMORY
    record_property("exploits: bombs", 1)


@pytest.mark.slow
def test_a_cache_that_claims_40_gb_is_made_anew(attempts, tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert attempts.faults("pack", *SCANS["pack"], mistake=False) == ""
    for victim in (tmp_path / "cache").rglob("scan-*.npz"):
        victim.write_bytes(npz_bomb())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert attempts.faults("pack", *SCANS["pack"][:-1], "out_dir=out2", mistake=False) == ""
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MEMORY
    record_property("exploits: bombs", 1)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["train, 2 processes", "generate, 2 processes"])
def test_processes_listen_on_the_loopback_address_alone(case, places, record_property):
    name, arguments = CASES[case]
    run = start(name, arguments, prepared(places, case, "watched"))
    heard = set()
    while run.wait(0.05) is None:
        for pid in members(run.pid):
            try:
                for connection in psutil.Process(pid).net_connections("inet"):
                    heard.add((connection.status, connection.laddr.ip))
            except psutil.Error:
                continue
    assert run.wait(0) == 0, run.texts()
    assert heard
    assert {ip for _, ip in heard} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, heard
    record_property("exploits: sockets", 1)
