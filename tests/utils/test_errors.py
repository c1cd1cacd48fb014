import math
from pathlib import Path

import pytest

from geoseg_gan.utils import errors
from geoseg_gan.utils.errors import UserError, check_range, check_values, install, one_line


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, "lr.x=nan: use a finite number"),
        (math.inf, "use a finite number"),
        ([0, -math.inf], "use a finite number"),
        ({"y": [{"z": 10**400}]}, "lr.x.y.z=1000"),
        ("a\nb", "characters that cannot be shown"),
        ("a\x1b[31m", "characters that cannot be shown"),
        ("a\udcff", "characters that cannot be shown"),
        ("$x${oc.env:HOME}", "stands for its value"),
        ("~/runs", "only a shell knows ~"),
        ("~", "only a shell knows ~"),
    ],
)
def test_values_that_no_setting_can_have_are_refused(value, why):
    with pytest.raises(UserError) as caught:
        check_values({"lr": {"x": value}})
    assert why in str(caught.value)


def test_other_values_pass():
    check_values({"a": [1, -2.5, True, None, "é [/b] ~x", r"part_(\d+)$"], "b": {"c": 2**32 - 1}})


def test_one_line_holds_nothing_that_steers_a_terminal():
    assert one_line(" a \n  b\x1b[31m\t\udcff é\r") == r"a b\x1b[31m\t\udcff é"


def test_large_limits_are_told_in_full():
    with pytest.raises(UserError, match="seed=-1: use 0 or more, up to 4294967295"):
        check_range("seed", -1, 0, 2**32 - 1)


def test_extras_are_installed_from_the_clone_or_the_wheel(monkeypatch, tmp_path):
    assert install("app") == f"pip install -e '{Path(__file__).parents[2]}[app]'"
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages/geoseg_gan/utils/e.py"))
    assert install("app").startswith("pip install 'WHEEL[app]', with the path of the wheel")
