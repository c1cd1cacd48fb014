from geoseg_gan.utils.tables import markdown_table


def test_a_table_has_a_head_and_keeps_bars_in_its_cells():
    lines = markdown_table(["a", "b"], [(1, "x|y"), (2, "z")])
    assert lines == ["| a | b |", "|---|---|", "| 1 | x\\|y |", "| 2 | z |"]
