import zipfile

import numpy as np
import pytest

from geoseg_gan.utils import reading as module
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.reading import Array, Number, read_arrays, read_json, whole

SHAPE = {"a": (None, whole(0, 9)), "b?": [{"x", "y"}], "*": Number(0)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 10}', "has 'a', which is 10, not a whole number from 0 to 9"),
        ('{"a": true}', "has 'a', which is True"),
        ('{"a": null, "b": ["x", "z"]}', r"has 'b\[1\]', which is 'z', not one of x, y"),
        ('{"a": 1, "other": -1}', "has 'other', which is -1"),
        ('{"b": []}', "lacks 'a'"),
        ('{"a": Infinity}', "cannot be read .*Infinity is not JSON"),
        ("[" * 100_000, "cannot be read .*nested too deeply"),
    ],
)
def test_json_is_checked_field_by_field(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"a\.json {message}.* Do this\."):
        read_json(path, SHAPE, "Do this.")
    path.write_text('{"a": 3, "b": ["x"], "other": 0.5}')
    assert read_json(path, SHAPE, "")["a"] == 3
    with pytest.raises(UserError, match="larger than 0 MiB"):
        read_json(path, SHAPE, "", most=10)


def test_arrays_that_do_not_fit_into_memory_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros((1000, 1000), np.int64))
    assert path.stat().st_size < 2**15
    shape = {"a": Array("i", ("rows", "rows"))}
    assert read_arrays(path, shape, "")["a"].shape == (1000, 1000)
    monkeypatch.setattr(module, "free_memory", lambda: 2**20)
    with pytest.raises(UserError, match=r"a\.npz cannot be read \(its arrays would take 0\.0 GiB"):
        read_arrays(path, shape, "")


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("'<i8'", "(10**15,)"), ("'<i8'", f"({10**15},)"), ("'<i8'", f"({10**30},)"), ("()", "(1,)")],
)
def test_an_array_whose_header_no_array_has_is_refused(tmp_path, dtype, shape):
    path = tmp_path / "a.npz"
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n"
    with zipfile.ZipFile(path, "w") as archive:
        size = len(header).to_bytes(2, "little")
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + size + header.encode())
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        read_arrays(path, {"a": Array("i", ("rows",))}, "")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_arrays_whose_bytes_are_damaged_are_refused(tmp_path, method):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", bytes(range(256)) * 8)
    content = bytearray(path.read_bytes())
    content[45:90] = bytes(byte ^ 255 for byte in content[45:90])
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        read_arrays(path, {"a": Array("i", ("rows",))}, "")
