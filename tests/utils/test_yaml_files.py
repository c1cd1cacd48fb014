import re

import pytest

from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.yaml_files import load_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, "more than 30,000 values"),
        (MERGED, "more than 30,000 values"),
        ("a: &a [*a]", "more than 30,000 values"),
        ("".join(f"k{n}: 1\n" for n in range(40_000)), "more than 30,000 values"),
        ("a: " + "x" * 600_000, "more than 500,000 bytes"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("a: " + "[" * 900 + "]" * 900, "nested too deeply"),
        ("a: !!python/object/apply:os.system [ls]", "tag os.system stands for a Python object"),
        ("a: !!python/object/apply:pathlib.Path [b]", "tag pathlib.Path stands for a Python"),
        ("a: 1\na: 2", "duplicate key a"),
        ("a: [1", "expected ',' or ']'"),
        ("- 1", "holds no key: value"),
        ("12", "holds no key: value"),
        (b"a: \xff", "can't decode byte 0xff"),
        (b"a: \x00", "unacceptable character"),
    ],
)
def test_what_is_no_configuration_is_refused_in_a_line(text, why, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        load_yaml(path)
    shown = str(caught.value)
    assert shown.startswith(f"{path} cannot be read as YAML: ") and why in shown
    assert shown.isprintable() and not re.search("unicode string|byte string", shown)


def test_content_is_plain_and_aliases_are_followed(tmp_path):
    (tmp_path / "a.yaml").write_text("# one\na: &a {b: [1, 2e-4, null]}\nc: *a\nd: ${a}\n")
    text, content = load_yaml(tmp_path / "a.yaml")
    assert text.startswith("# one")
    part = {"b": [1, 2e-4, None]}
    assert content == {"a": part, "c": part, "d": "${a}"}
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_yaml(tmp_path / "empty.yaml")[1] == {}
    with pytest.raises(UserError, match="is not a file"):
        load_yaml(tmp_path)
