from tests.bench_gpu.chart import over_dense_chart
from tests.bench_gpu.rows import GROUP_1, Row


def row(part, contestant, seq_len, median_ms, mode="eager", direction="forward", layout=GROUP_1):
    return Row(layout, seq_len, part, contestant, direction, mode, median_ms=median_ms)


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def test_a_line_is_the_time_over_dense_and_graphs_stand_for_eager():
    rows = [
        row("dense", "flash", 2048, 1.0), row("whole", "fused", 2048, 9.0),
        row("dense", "flash", 2048, 1.0, "graph"), row("whole", "fused", 2048, 2.0, "graph"),
        row("dense", "flash", 8192, 4.0), row("whole", "fused", 8192, 6.0),
    ]  # fmt: skip
    forward, backward = named(over_dense_chart(rows, "a machine"), "fused, whole attention")
    assert (list(forward.x), list(forward.y)) == ([2048, 8192], [2.0, 1.5])
    assert list(backward.x) == []
    assert forward.showlegend
    assert not backward.showlegend


def test_who_was_too_slow_for_a_graph_keeps_its_eager_point():
    rows = [
        row("dense", "flash", 8192, 1.0), row("selected", "packed", 8192, 50.0),
        row("dense", "flash", 8192, 1.0, "graph"), row("selected", "fused", 8192, 2.0, "graph"),
    ]  # fmt: skip
    figure = over_dense_chart(rows, "a machine")
    forward = [named(figure, f"{name}, selected branch")[0] for name in ("packed", "fused")]
    assert [(list(line.x), list(line.y)) for line in forward] == [([8192], [50.0]), ([8192], [2.0])]


def test_the_targets_and_the_dense_line_are_drawn():
    figure = over_dense_chart([row("dense", "flash", 8192, 4.0)], "a machine")
    forward, backward = named(figure, "target: fused, whole attention")
    assert list(forward.y) == [2.3, 1.4, 0.28]
    assert list(backward.y) == [1.5, 1.0, 0.17]
    assert [(list(line.x), list(line.y)) for line in named(figure, "dense")] == [([8192], [1])] * 2


def test_a_chart_of_two_layouts_has_two_rows_and_one_legend():
    rows = [row(p, c, 8192, 1.0, layout=layout) for layout in (GROUP_1, "other") for p, c in
            (("dense", "flash"), ("selected", "masked"))]  # fmt: skip
    figure = over_dense_chart(rows, "a machine")
    assert sum(bool(trace.showlegend) for trace in named(figure, "masked, selected branch")) == 1
    assert len({trace.yaxis for trace in figure.data}) == 4


def test_nothing_measured_makes_an_empty_chart():
    assert over_dense_chart([], "a machine").layout.title.text == "Time over dense attention"
