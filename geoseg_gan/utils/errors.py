"""The one exception that stands for a user's mistake, and how warnings are shown."""

import difflib
import math
import re
import shlex
import sys
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LARGEST_SEED = 2**32 - 1
"""The largest seed that NumPy and Lightning take; the least is 0."""

_LARGEST = 1e12  # of all numbers in configurations: closer limits are those of the settings


class UserError(Exception):
    """A mistake the user can mend: the commands print it as one line and exit with code 1.

    The text says what is wrong, where (file, key or value), and what to do next.
    """

    def __init__(self, text: str = "") -> None:
        """Keeps the text, without the traceback of a loader's process that stands before it."""
        if "\nOriginal Traceback" in text:
            text = text.strip().rpartition("\n")[2].partition(": ")[2]
        super().__init__(text)


def one_line(text: str) -> str:
    """A text on one line, without what would steer a terminal, as names of files can hold it."""
    line = re.sub(r"\s*\n\s*", " ", text.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def show_warnings_as_lines() -> None:
    """Has this process show warnings as lines on stderr, and what is for developers not at all."""
    warnings.showwarning = lambda message, *_: print(
        f"warning: {one_line(str(message))}", file=sys.stderr, flush=True
    )
    for category in (FutureWarning, DeprecationWarning):  # of libraries, about each other
        warnings.simplefilter("ignore", category)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _show_error_of_thread


def _show_error_of_thread(error: threading.ExceptHookArgs) -> None:
    # TensorBoard's thread hands a full disk on to the main thread, which tells of it.
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)


def check_choice(key: str, value: object, allowed: Iterable[str]) -> None:
    """Refuses, with a UserError, a value that is not one of those allowed."""
    names = list(allowed)
    if value not in names:
        close = difflib.get_close_matches(str(value), names, 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UserError(f"{key}={value} is not one of {', '.join(names)}.{hint}")


def check_range(
    key: str, value: float | None, low: float, high: float = math.inf, ends: str = "[]"
) -> None:
    """Refuses a number outside of an interval; None, the value of a knob that is not set, passes.

    Args:
        key: What it is called in the configuration.
        value: The number.
        low: The interval's lower end.
        high: Its upper end; infinite values are refused in any case.
        ends: Which ends are part of it: "[]" both, "(]" the upper, "[)" the lower, "()" neither.

    Raises:
        UserError: Naming the key, the value and the interval.
    """
    if value is None:
        return
    is_above = value >= low if ends[0] == "[" else value > low
    is_below = value <= high if ends[1] == "]" else value < high
    if is_above and is_below and math.isfinite(value):
        return
    first, last = f"{low:.10g}", f"{high:.10g}"
    allowed = f"{first} or more" if ends[0] == "[" else f"more than {first}"
    if high < math.inf:
        allowed += f", up to {last}" if ends[1] == "]" else f", less than {last}"
    if ends == "[]" and high < 1000:
        allowed = f"{first} to {last}"
    raise UserError(f"{key}={value}: use {allowed}.")


def check_values(values: Any, key: str = "") -> None:
    """Refuses, with a UserError, endless numbers, and texts that no name of a file is.

    Args:
        values: A configuration as plain dicts and lists, or a part of it.
        key: What it is called in the configuration.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            check_values(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for value in values:
            check_values(value, key)
    elif isinstance(values, int | float) and not abs(values) <= _LARGEST:
        raise UserError(f"{key}={values}: use a finite number, at most {_LARGEST:g} in size.")
    elif isinstance(values, str) and not values.isprintable():
        raise UserError(f"{key}={values!r}: characters that cannot be shown are not allowed.")
    elif isinstance(values, str) and "${" in values:
        raise UserError(f"{key}={values}: a name of a setting in ${{}} stands for its value here.")
    elif isinstance(values, str) and values.split("/")[0] == "~":
        raise UserError(f"{key}={values}: only a shell knows ~. Write $HOME in its place.")


def install(extra: str) -> str:
    """The command that installs an extra: from the clone that runs, or for an installed wheel."""
    clone = Path(__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{clone}[{extra}]')}"
    return f"pip install 'WHEEL[{extra}]', with the path of the wheel of geoseg-gan for WHEEL"


def plural(count: float, noun: str) -> str:
    """Returns `count` and `noun`, with an s where it needs one."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
