import pytest

from tests.bench_gpu.rows import (
    GROUP_1,
    MEMORY_TARGET,
    MODEL,
    TARGETS,
    Row,
    compared,
    judged_targets,
    tables,
    with_ratios,
)


def row(part, contestant, median_ms, *, seq_len=8192, direction="forward", mode="eager", layout=GROUP_1, **more):
    spread = {} if median_ms is None else {"low_ms": 0.9 * median_ms, "high_ms": 1.1 * median_ms}
    return Row(layout, seq_len, part, contestant, direction, mode, median_ms=median_ms, **spread, **more)


def verdict(rows, part, direction="forward"):
    return next(t for t in judged_targets(rows) if (t["part"], t["direction"]) == (part, direction))


def test_dense_is_the_best_of_its_kernels_in_each_direction():
    rows = [
        row("dense", "cuDNN", 2.0),
        row("dense", "flash", 3.0),
        row("dense", "cuDNN", 9.0, direction="backward"),
        row("dense", "flash", 8.0, direction="backward"),
        row("selected", "fused", 1.0, floor_ms=0.5),
        row("selected", "fused", 2.0, direction="backward"),
    ]
    assert [r["over_dense"] for r in with_ratios(rows)] == [1, 1.5, 9 / 8, 1, 0.5, 0.25]
    assert [r["over_floor"] for r in with_ratios(rows)] == [None] * 4 + [2.0, None]
    assert [r["over_flash"] for r in with_ratios(rows)] == [2 / 3, 1, 9 / 8, 1, 1 / 3, 0.25]
    assert [r["over_cuDNN"] for r in with_ratios(rows)][-2:] == [0.5, 2 / 9]


@pytest.mark.parametrize("other", [{"mode": "graph"}, {"seq_len": 2048}, {"layout": "H=64 G=4 D=128"}])
def test_a_ratio_crosses_neither_modes_nor_lengths_nor_layouts(other):
    rows = [row("dense", "cuDNN", 2.0, **other), row("selected", "fused", 1.0)]
    assert with_ratios(rows)[1]["over_dense"] is None


def test_dense_that_was_wrong_is_no_yardstick():
    rows = [row("dense", "cuDNN", 1.0, reason="wrong: output"), row("dense", "flash", 3.0), row("whole", "fused", 3.0)]
    assert [r["over_dense"] for r in with_ratios(rows)] == [None, 1, 1]


def test_the_models_yardstick_is_the_dense_model():
    at = {"layout": MODEL, "direction": "step"}
    rows = [row("model", "dense", 4.0, **at), row("model", "fused", 3.0, **at), row("dense", "flash", 1.0, **at)]
    assert with_ratios(rows[:2])[1]["over_dense"] == 0.75
    assert verdict(rows[:2], "model", "step")["met"]


def test_a_target_is_met_up_to_its_bound():
    dense = row("dense", "flash", 100.0)
    assert verdict([dense, row("whole", "fused", 140.0)], "whole")["met"]
    missed = verdict([dense, row("whole", "fused", 154.0)], "whole")
    assert not missed["met"]
    assert missed["measured"] == 1.54
    assert missed["missed_by_percent"] == pytest.approx(10)


@pytest.mark.parametrize("what", [[], [row("whole", "fused", None)], [row("whole", "another", 1.0)],
                                  [row("whole", "fused", 1.0, reason="wrong: output")]])  # fmt: skip
def test_a_target_without_a_right_figure_is_not_met(what):
    found = verdict([row("dense", "flash", 100.0), *what], "whole")
    assert (found["met"], found["measured"]) == (False, None)


def test_at_2048_attention_is_judged_under_graphs_alone():
    eager = [row("dense", "flash", 1.0, seq_len=2048), row("whole", "fused", 1.0, seq_len=2048)]
    assert verdict(eager, "whole")["measured"] is None
    graphs = [
        row(r.part, r.contestant, ms, seq_len=2048, mode="graph") for r, ms in zip(eager, (1.0, 2.0), strict=True)
    ]
    assert verdict(eager + graphs, "whole")["measured"] == 2


def test_only_targets_of_what_was_asked_for_are_judged():
    assert judged_targets([row("dense", "flash", 1.0, seq_len=32768)]) == []
    assert {t["seq_len"] for t in judged_targets([row("dense", "flash", 1.0)])} == {8192}


def test_the_memory_target_needs_forward_and_backward_together():
    _, seq_len, limit_mib = MEMORY_TARGET
    forward = row("whole", "fused", 1.0, seq_len=seq_len, extra_mib=100.0)
    assert verdict([forward], "whole", "memory")["met"] is False
    for mib, met in ((limit_mib, True), (limit_mib + 1, False)):
        both = row("whole", "fused", 1.0, seq_len=seq_len, direction="backward", extra_mib=mib)
        assert verdict([forward, both], "whole", "memory")["met"] is met


def test_the_targets_are_those_of_two_layouts_and_the_model():
    assert len(TARGETS) == 8 * 2 + 3
    assert len({t.about for t in TARGETS}) == len(TARGETS)


def test_the_tables_show_figures_reasons_and_targets():
    rows = [
        row("dense", "flash", 100.0),
        row("whole", "fused", 154.0, error=2e-3, floor_ms=77.0),
        row("whole", "fused", 50.0, direction="backward", extra_mib=1234.0),
        row("selected", "masked", None, reason="RuntimeError: no | room"),
    ]
    targets, figures = (text.splitlines() for text in tables(rows).split("\n\n"))
    assert "| H=12 G=12 D=64 | 8,192 | whole | forward | eager | 1.4 x dense | 1.54 | missed by 10 % |" in targets
    assert "| H=12 G=12 D=64 | 8,192 | whole | backward | eager | 1 x dense |  | not measured |" in targets
    assert len(figures) == 2 + 3
    assert "154 (138.6 to 169.4) | 1.54 | 1.54 | 2 | 50 (45 to 55)" in figures[3]
    assert "1,234 | 2.0e-03" in figures[3]
    assert r"RuntimeError: no \| room" in figures[4]
    assert len({line.replace(r"\|", "").count("|") for line in figures}) == 1


def test_two_runs_side_by_side():
    before = with_ratios([row("whole", "fused", 4.0), row("choice", "fused", 1.0, reason="wrong: blocks")])
    now = [row("whole", "fused", 3.0), row("choice", "fused", 1.0), row("sliding", "fused", 2.0)]
    *_, line = compared(now, before).splitlines()
    assert line == "| H=12 G=12 D=64 | 8192 | whole | fused | forward | eager | 4 | 3 | 0.75 |"
    assert compared(now[2:], before) == "No figure is in both runs."
