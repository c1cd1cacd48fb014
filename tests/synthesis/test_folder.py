import pytest

from geoseg_gan.data.synthetic import GENERATION
from geoseg_gan.synthesis.writer import stored_facts
from geoseg_gan.utils.errors import UserError
from geoseg_gan.utils.files import write_json

SAID = {"format": 1, "segmenter": None, "config": {"seed": 0, "layout": "pairs", "variants": 1}}


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / GENERATION, SAID | {"tau": 0.6})
    return tmp_path


def test_a_new_or_empty_folder_says_nothing(tmp_path):
    assert stored_facts(tmp_path / "new", SAID) is None
    assert stored_facts(tmp_path, SAID) is None


def test_a_folder_of_the_same_generation_tells_what_only_it_knows(folder):
    stored = stored_facts(folder, SAID)
    assert stored is not None and stored["tau"] == 0.6


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"config": {"seed": 1, "layout": "pairs"}}, r"config\.seed was 0, now 1"),
        ({"config": {"seed": 0, "layout": "pairs", "new": 1}}, r"config\.new was None, now 1"),
        ({"config": {"seed": 0}}, "config was .*, now "),
        ({"segmenter": {"sha256": "ab"}}, "segmenter was None, now .*ab"),
        ({"gsd": 0.5}, r"gsd was None, now 0\.5"),
    ],
)
def test_what_differs_is_named_with_both_values(folder, now, message):
    with pytest.raises(UserError, match=message):
        stored_facts(folder, SAID | now)


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(UserError, match="holds other files"):
        stored_facts(tmp_path, SAID)


@pytest.mark.parametrize("content", ["", "{", "3", "[1]"])
def test_a_file_that_generate_did_not_write_is_named(tmp_path, content):
    (tmp_path / GENERATION).write_text(content)
    with pytest.raises(UserError, match=r"generation\.json is not as generate writes it"):
        stored_facts(tmp_path, SAID)
