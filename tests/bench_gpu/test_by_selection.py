from tests.bench_gpu.by_selection import by_selection
from tests.bench_gpu.rows import GROUP_1, Row


def rows(contestant, forward_ms, backward_ms, *, part="selected", seq_len=65536, **more):
    return [
        Row(GROUP_1, seq_len, part, contestant, direction, "eager", median_ms=ms, **more)
        for direction, ms in (("forward", forward_ms), ("backward", backward_ms))
    ]


def cells(text):
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_random_and_captured_stand_side_by_side():
    found = by_selection([
        *rows("cuDNN", 10.0, 40.0, part="dense"),
        *rows("fused", 2.0, 4.0),
        *rows("fused, captured", 1.0, 3.0),
        *rows("packed", 9.0, 9.0),
        *rows("fused", 5.0, 5.0, part="whole"),
    ])  # fmt: skip
    (line,) = cells(found)
    assert (line["layout"], line["S"], line["mode"]) == (GROUP_1, "65,536", "eager")
    assert line["random"] == "2 / 4 (0.2x / 0.1x dense)"
    assert line["captured"] == "1 / 3 (0.1x / 0.075x dense)"
    assert set(line) == {"layout", "S", "mode", "random", "captured"}


def test_a_wrong_or_missing_figure_is_an_empty_cell():
    found = by_selection([
        *rows("fused", 2.0, 4.0),
        *rows("fused, captured", 1.0, 3.0, reason="wrong: output"),
        *rows("fused, the same for all", 1.0, 3.0)[:1],
        *rows("fused, 2 % redrawn", 1.0, 3.0),
    ])  # fmt: skip
    (line,) = cells(found)
    assert line["random"] == "2 / 4"
    assert set(line) == {"layout", "S", "mode", "random", "2 % redrawn"}


def test_random_blocks_alone_are_no_table():
    assert by_selection(rows("fused", 2.0, 4.0)) == ""
    assert by_selection([]) == ""
