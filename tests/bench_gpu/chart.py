"""The chart of a run: time over dense attention against the length, forward and backward, a row a layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nsa_lib.report.charts.chart import BLUE, GREEN, GREY, LENGTH_AXIS, PURPLE, VERMILION, Chart, empty_chart, points
from nsa_lib.report.page import Section, page
from tests.bench_gpu.contestants import FLA, FUSED
from tests.bench_gpu.floors import BACKWARD, FORWARD
from tests.bench_gpu.rows import TARGETS, Row, with_ratios

HOW_TO_READ = (
    "Below 1 a contestant is faster than dense causal attention of the same heads, the better of cuDNN and flash, in "
    "the same run. Triangles are targets. What was measured under CUDA graphs too, at the shorter lengths, is drawn "
    "without its launches."
)

LINES = {
    ("dense", "dense"): ("dense", GREY, "solid"),
    ("whole", FUSED): ("fused, whole attention", BLUE, "solid"),
    ("selected", FUSED): ("fused, selected branch", BLUE, "dot"),
    ("selected", "masked"): ("masked, selected branch", VERMILION, "dot"),
    ("selected", "packed"): ("packed, selected branch", GREEN, "dot"),
    ("selected", "gather"): ("gather, selected branch", PURPLE, "dot"),
    ("selected", FLA): ("fla-core, selected branch", GREY, "dot"),
}


def over_dense_chart(rows: Sequence[Row], facts: str) -> Chart:
    """Draw the time of each contestant over dense attention's against the length, both axes logarithmic.

    Of what was measured under CUDA graphs too, those figures are drawn: eager, launches decide there. The line at
    1 is dense attention; a triangle is a target, the most that a time may be.
    """
    drawn = [row for row in with_ratios(rows) if row["over_dense"] is not None and row["part"] != "model"]
    drawn = [{**row, "text": f"{row['median_ms']:.4g} ms, {row['mode']}"} for row in drawn]
    graphed = {_measured(r) for r in drawn if r["mode"] == "graph"}
    drawn = [r for r in drawn if r["mode"] == "graph" or _measured(r) not in graphed]
    layouts = list(dict.fromkeys(row["layout"] for row in drawn)) or ["nothing measured"]
    directions = (FORWARD, BACKWARD)
    figure = empty_chart("Time over dense attention", "", facts)
    titles = [f"{layout}, {direction}" for layout in layouts for direction in directions]
    figure.set_subplots(
        len(layouts), 2, shared_xaxes="all", shared_yaxes="all", subplot_titles=titles, vertical_spacing=0.1
    )
    lengths = sorted({row["seq_len"] for row in drawn})
    for row, layout in enumerate(layouts, start=1):
        for column, direction in enumerate(directions, start=1):
            panel = [r for r in drawn if (r["layout"], r["direction"]) == (layout, direction)]
            _lines(figure, row, column, [*panel, *_dense(lengths)])
            _targets(figure, row, column, layout, direction)
    figure.update_xaxes(type="log", tickvals=lengths, ticktext=[f"{length:,}" for length in lengths], title_text="")
    figure.update_xaxes(title_text=LENGTH_AXIS, row=len(layouts))
    figure.update_yaxes(type="log", dtick="D2", nticks=None, tickformat=",~r")
    figure.update_yaxes(title_text="time / dense's", col=1)
    figure.update_layout(height=190 + 340 * len(layouts), margin={"t": 110, "b": 130}, hovermode="closest")
    figure.update_layout(legend={"y": -0.3 / len(layouts), "yanchor": "top"})
    return figure


def write_chart(figure: Chart, path: Path) -> None:
    """Write a chart as one HTML page that needs no network."""
    section = Section("How does the fused attention compare with dense?", [HOW_TO_READ], charts=[figure])
    path.write_text(page("Attention on one GPU", [section]))


def _measured(row: dict) -> tuple[object, ...]:
    return tuple(row[name] for name in ("layout", "seq_len", "direction", "part", "contestant"))


def _dense(lengths: Sequence[int]) -> list[dict]:
    about = {"part": "dense", "contestant": "dense", "over_dense": 1, "text": ""}
    return [{**about, "seq_len": length} for length in lengths]


def _lines(figure: Chart, row: int, column: int, drawn: list[dict]) -> None:
    for (part, contestant), (name, colour, dash) in LINES.items():
        line = sorted(
            (r for r in drawn if (r["part"], r["contestant"]) == (part, contestant)), key=lambda r: r["seq_len"]
        )
        trace = points([r["seq_len"] for r in line], [r["over_dense"] for r in line], name, colour, dash, "x dense")
        trace.update(legendgroup=name, showlegend=bool(line) and _is_first(figure, name))
        trace.update(text=[r["text"] for r in line])
        trace.update(hovertemplate="S=%{x:,}: %{y:.3g}x dense, %{text}")
        figure.add_trace(trace, row=row, col=column)


def _targets(figure: Chart, row: int, column: int, layout: str, direction: str) -> None:
    for part in ("whole", "selected"):
        name, colour, _ = LINES[part, FUSED]
        aims = [t for t in TARGETS if (t.layout, t.direction, t.part) == (layout, direction, part)]
        trace = points([t.seq_len for t in aims], [t.over_dense for t in aims], f"target: {name}", colour, "solid", "x")
        trace.update(
            mode="markers", marker={"symbol": "triangle-down" if part == "whole" else "triangle-down-open", "size": 11}
        )
        trace.update(legendgroup=f"target {part}", showlegend=bool(aims) and _is_first(figure, f"target: {name}"))
        trace.update(hovertemplate="S=%{x:,}: target %{y:.3g}x dense")
        figure.add_trace(trace, row=row, col=column)


def _is_first(figure: Chart, name: str) -> bool:
    return not any(trace.name == name and trace.showlegend for trace in figure.data)
