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


def test_an_array_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }\n"
    with zipfile.ZipFile(path, "w") as archive:
        size = len(header).to_bytes(2, "little")
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + size + header.encode())
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        read_arrays(path, {"a": Array("i", ("rows",))}, "")
