"""Files that anybody may have written: read within bounds, and checked field by field.

What a file must hold is a shape:

- a type; None; a `Number`; an `Array`; a set of the valid values
- a tuple: one of these shapes
- [shape]: a list of such
- {name: shape}: a mapping with these keys, of which "name?" may be missing, and perhaps others,
  which must be as "*" says where that is a key
"""

import codecs
import csv
import io
import json
import math
import reprlib
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from geoseg_gan.utils.device import free_memory
from geoseg_gan.utils.errors import UserError

TEXT = 2**28  # bytes of a text: a manifest of a million pairs has as many
_ARRAYS = 2**34  # bytes of all arrays of a file
_SEPARATORS = (",", ";", "\t")  # of the columns of a table


@dataclass(frozen=True)
class Number:
    """A number in an interval, both ends included; `finite` refuses NaN and infinity."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    finite: bool = True

    def holds(self, value: Any) -> bool:
        """Whether a value is such a number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        try:
            is_finite = math.isfinite(value)
        except OverflowError:  # a whole number beyond all floats
            return False
        if not is_finite:
            return not self.finite
        return self.low <= value <= self.high and (not self.whole or isinstance(value, int))

    def __str__(self) -> str:
        """In words."""
        kind = "a whole number" if self.whole else "a number"
        if self.high >= 2**31:
            return kind if self.low == -math.inf else f"{kind} of {self.low:g} or more"
        return f"{kind} from {self.low:g} to {self.high:g}"


def whole(low: int = 0, high: int = 2**31) -> Number:
    """A whole number in an interval, both ends included."""
    return Number(low, high, whole=True)


@dataclass(frozen=True)
class Array:
    """A NumPy array.

    Attributes:
        kinds: NumPy's letters of the valid kinds of dtype, as in "iu".
        sides: Its shape; a name stands for the same length in all arrays of a file.
        low: The least valid value.
        high: The greatest one.
    """

    kinds: str
    sides: tuple[int | str, ...]
    low: float = -math.inf
    high: float = math.inf

    def problem(self, value: Any, lengths: dict[str, int]) -> str | None:
        """What is wrong with a value; `lengths` are those known by name, and more are added."""
        if not isinstance(value, np.ndarray):
            return "is no array"
        for side, length in zip(self.sides, value.shape, strict=False):
            if isinstance(side, str):
                lengths.setdefault(side, length)
        wanted = [lengths.get(side, -1) if isinstance(side, str) else side for side in self.sides]
        if value.dtype.kind not in self.kinds or list(value.shape) != wanted:
            return f"is {value.dtype} of shape {list(value.shape)}, not {wanted}"
        if self.low > -math.inf or self.high < math.inf:
            inside = (value >= self.low) & (value <= self.high)  # NaN is not
            if not inside.all():
                return f"holds {value[~inside].flat[0]}, not {self.low:g} to {self.high:g}"
        return None


def check_content(path: Path | str, content: Any, shape: Any, advice: str) -> None:
    """Refuses, with a UserError, what a file holds unless it is as a shape says."""
    if problem := _problem(content, shape, "", {}):
        _refuse(path, problem, advice)


def read_bytes(path: Path, most: int) -> bytes:
    """Reads a file of at most `most` bytes.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is larger, or a pipe or device.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise ValueError("it is not a file")
    with path.open("rb") as source:
        content = source.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most / 2**20:,.0f} MiB")
    return content


def read_json(path: Path, shape: Any, advice: str, most: int = TEXT) -> Any:
    """Reads a JSON file of at most `most` bytes.

    Raises:
        OSError: If it cannot be read.
        UserError: If it is not JSON as the shape says.
    """
    try:
        content = parse_json(read_bytes(path, most))
    except ValueError as error:
        _refuse(path, f"cannot be read ({error})", advice)
    check_content(path, content, shape, advice)
    return content


def parse_json(text: bytes | str) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: If it is not JSON, which knows neither NaN nor infinity.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_arrays(path: Path, shape: Mapping[str, Any], advice: str) -> dict[str, npt.NDArray[Any]]:
    """Reads the arrays of an .npz file.

    Raises:
        OSError: If it cannot be read.
        UserError: If it is no such file, its arrays are not as the shape says, or they do not fit
            into memory.
    """
    try:
        if not path.is_file() and path.exists():
            raise ValueError("it is not a file")
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > min(_ARRAYS, 0.8 * free_memory()):
            raise ValueError(f"its arrays would take {size / 2**30:,.1f} GiB of memory")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # NumPy and zipfile raise many types for other files
        if isinstance(error, OSError) and error.errno is not None:
            raise
        _refuse(path, f"cannot be read ({error})", advice)
    check_content(path, arrays, shape, advice)
    return arrays


def read_table(path: Path, columns: Sequence[str], advice: str) -> list[dict[str, str]]:
    """Reads the rows of a CSV file that has at least these columns.

    Spreadsheets save such files in several encodings, and with semicolons or tabs for commas.

    Raises:
        OSError: If it cannot be read.
        UserError: If it is no such file; it names the row.
    """
    try:
        text = _decoded(read_bytes(path, TEXT))
        first = text.lstrip().partition("\n")[0]
        mark = max(_SEPARATORS, key=first.count)
        lines = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=mark)
        head = [name.strip() for name in lines.fieldnames or ()]
        if lacking := [name for name in columns if name not in head]:
            _refuse(path, f"lacks the column '{lacking[0]}'", advice)
        lines.fieldnames = head
        rows = []
        for row in lines:
            if any(row[name] is None for name in columns):
                _refuse(path, f"lacks a value in line {lines.line_num}", advice)
            rows.append(row)
        return rows
    except (ValueError, csv.Error) as error:
        _refuse(path, f"cannot be read ({error})", advice)


def _decoded(content: bytes) -> str:
    """The text of a file that a spreadsheet saved: in UTF-8, UTF-16 or Windows' Western encoding.

    Raises:
        ValueError: If it is no text.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252")
    if "\0" in text:
        raise ValueError("it is no text; save it as CSV in UTF-8")
    return text


def _refuse(path: Path | str, problem: str, advice: str) -> NoReturn:
    raise UserError(f"{path} {' '.join(problem.split())}. {advice}") from None


def _problem(value: Any, shape: Any, name: str, lengths: dict[str, int]) -> str | None:
    """What is wrong with a field, after the name of its file; None where nothing is."""
    where = f"has '{name}', which" if name else "holds what"
    if isinstance(shape, tuple):
        found = [_problem(value, one, name, lengths) for one in shape]
        return None if None in found else found[-1]
    if isinstance(shape, Array):
        problem = shape.problem(value, lengths)
        return problem and f"{where} {problem}"
    fields: Iterable[tuple[str, Any, Any]]
    if isinstance(shape, dict) and isinstance(value, Mapping):
        prefix = f"{name}." if name else ""
        for key in shape:
            if key not in value and key != "*" and key[-1] != "?":
                return f"lacks '{prefix}{key}'"
        shapes = {key.removesuffix("?"): one for key, one in shape.items()}
        rest = shapes.get("*", object)
        fields = ((f"{prefix}{key}", one, shapes.get(key, rest)) for key, one in value.items())
    elif isinstance(shape, list) and isinstance(value, list):
        fields = ((f"{name}[{number}]", one, shape[0]) for number, one in enumerate(value))
    elif _is_plain(value, shape):
        return None
    else:
        return f"{where} is {reprlib.repr(value)}, not {_words(shape)}"
    problems = (_problem(one, its_shape, field, lengths) for field, one, its_shape in fields)
    return next(filter(None, problems), None)


def _is_plain(value: Any, shape: Any) -> bool:
    if isinstance(shape, Number):
        return shape.holds(value)
    if isinstance(shape, set | frozenset):
        return isinstance(value, str | int) and value in shape
    return value is None if shape is None else isinstance(shape, type) and isinstance(value, shape)


def _words(shape: Any) -> str:
    if isinstance(shape, set | frozenset):
        return f"one of {', '.join(map(str, sorted(shape)))}"
    if isinstance(shape, type):
        return {str: "a text", bool: "true or false"}.get(shape, shape.__name__)
    kinds = {dict: "a mapping", list: "a list", type(None): "null"}
    return kinds.get(type(shape)) or str(shape)
