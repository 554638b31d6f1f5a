"""The charts of a backend contrast: speed of the layer and of the model, the sweep over lengths, memory.

They draw what is there: a contestant that was not measured is left out. Nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Container

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.contract.agenda import DENSE, NO_BACKEND
from nsa_lib.contract.figures import short
from nsa_lib.report.charts.attention_map import BRANCH_WORDS
from nsa_lib.report.charts.chart import (
    BLUE,
    GREY,
    PEAKS,
    VERMILION,
    Chart,
    log_log_chart,
    log_ticks,
    looks,
    memory_rows,
    nothing,
    points,
    rows_chart,
)
from nsa_lib.report.table import Table
from nsa_lib.report.tables import frame_table
from nsa_lib.runs.recorded import Recorded
from nsa_lib.subject.config import BACKEND_NAMES, OWN
from nsa_lib.workbook.backend_contrast.measures import contrast_rows, first_faster, swept, timing_rows, whole_of

DENSE_LOOK = (GREY, "dashdot")
"""Colour and dash of the yardstick."""


def contrast_figures(run: Recorded) -> dict[str, Chart]:
    """Return the charts of a contrast: speed, model_speed, sweep, memory."""
    timed, seq_len = timing_rows(run), run.parameter("seq_len")
    return {
        "speed": time_points(timed, "layer", seq_len=seq_len),
        "model_speed": time_points(timed, "model", seq_len=seq_len),
        "sweep": time_sweep(timed, first_faster(run)),
        "memory": memory_bars(contrast_rows(run)),
    }


SUBJECTS = {"layer": "one layer", "model": "the whole model"}
"""What is timed."""


def time_points(timed: pd.DataFrame, subject: str, *, seq_len: int) -> Chart:
    """Draw the median time [ms] of forward and of backward of each contestant at one length, with their quartiles.

    The axis is logarithmic: beside a backend thirty times as slow, bars from 0 would hide how the fast ones differ.

    Args:
        timed: as `measures.timing_rows` returns it.
        subject: `layer` or `model`.
        seq_len: one of the lengths that were timed.
    """
    title = f"Time of {SUBJECTS[subject]} at S={seq_len:,}"
    timed = timed[(timed["subject"] == subject) & (timed["seq_len"] == seq_len)]
    if timed.empty:
        return nothing(title, "ms", "nothing timed")
    of_nsa = set(timed.loc[timed["branches"] == "slc", "backend"])
    names = [_contestant(row, of_nsa) for row in timed.itertuples()]
    facts = f"medians of {timed['rounds'].max()} rounds, forward above and backward below; whiskers: quartiles"
    figure = rows_chart(title, "ms", facts, names)
    # Above and below the points is neither a whisker nor a neighbour.
    for phase, colour, place in (("forward", BLUE, "top center"), ("backward", VERMILION, "bottom center")):
        middle = timed[f"{phase}_ms"]
        whiskers = {
            "array": timed[f"{phase}_high_ms"] - middle,
            "arrayminus": middle - timed[f"{phase}_low_ms"],
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        }
        marks = go.Scatter(x=middle, y=names, name=phase, mode="markers+text", error_x=whiskers, textposition=place)
        marks.update(text=[short(ms, 3) for ms in middle], textfont={"size": 12}, cliponaxis=False)
        figure.add_trace(marks.update(marker={"size": 9, "color": colour}, hovertemplate="%{y}: %{x:,.3f} ms"))
    every = timed[["forward_ms", "backward_ms"]].to_numpy().ravel()
    figure.update_xaxes(type="log", title_text="ms, logarithmic", dtick=log_ticks(every), nticks=None)
    figure.update_yaxes(showgrid=True)
    return figure


def _contestant(row, of_nsa: Container[str]) -> str:
    """Return what a row of the timing is called: a model by its backend, a layer of NSA by its branches too."""
    if row.backend == DENSE:
        return "dense attention"
    if row.subject == "model" or (row.backend == OWN and OWN not in of_nsa):
        return row.called
    branches = "all branches" if row.branches == "all" else f"{BRANCH_WORDS[row.branches]} branch"
    return branches if row.backend == NO_BACKEND else f"{branches}, {row.called}"


def time_sweep(timed: pd.DataFrame, crossings: dict[str, int | None]) -> Chart:
    """Draw the median time [ms], forward and backward, against the length, and where dense is passed.

    It is that of a whole layer, or of the whole model where that is a user's.

    Args:
        timed: as `measures.timing_rows` returns it.
        crossings: for each backend the length from which it is faster than dense, or None.
    """
    title = f"Time of {SUBJECTS[swept(timed)]} against the length"
    layers = whole_of(timed).sort_values("seq_len")
    if layers.empty:
        return nothing(title, "ms", "nothing timed")
    passed = [f"{name} from S={length:,}" for name, length in crossings.items() if length is not None]
    facts = f"faster than dense: {', '.join(passed)}" if passed else "no backend is faster than dense at these lengths"
    facts = f"forward and backward; {facts if crossings else 'dense was not timed'}"
    figure = log_log_chart(title, "ms", facts, sorted(set(layers["seq_len"])))
    figure.update_yaxes(dtick=log_ticks(layers["total_ms"]))
    # The known backends come first, so that each has the same look in every chart.
    backends = [name for name in (*BACKEND_NAMES, *layers["called"]) if name != DENSE]
    for name, (colour, dash) in {**looks(backends), DENSE: DENSE_LOOK}.items():
        own = layers[layers["called"] == name]
        if len(own):
            figure.add_trace(points(own["seq_len"], own["total_ms"], name, colour, dash, "ms"))
    return figure


def memory_bars(rows: pd.DataFrame) -> Chart:
    """Draw the peak allocated and reserved memory [MiB] of the model's training with each backend.

    Args:
        rows: as `measures.contrast_rows` returns it.
    """
    measured = rows.dropna(subset=["peak_alloc_mib"])
    if measured.empty:
        return nothing("Peak memory of the training", "MiB")
    peaks = measured.loc[~measured["backend"].isin([DENSE, OWN]), "peak_alloc_mib"]
    facts = "a process each"
    if len(peaks) > 1:
        facts += f"; allocated by our backends: within {100 * (peaks.max() / peaks.min() - 1):.1f} % of each other"
    bars = {name: measured[column] for name, column in PEAKS.items()}
    return memory_rows("Peak memory of the training", facts, measured["called"], bars)


def contrast_table(rows: pd.DataFrame) -> Table:
    """Tabulate what is known of the model with each backend (`measures.contrast_rows`)."""
    columns = {
        "called": "backend", "forward_ms": "forward, ms", "backward_ms": "backward, ms", "total_ms": "both, ms",
        "spread_percent": "spread, %", "ratio_to_dense": "time, dense = 1", "peak_alloc_mib": "peak allocated, MiB",
        "operators_per_step": "operators a step", "output_error": "relative error, output",
        "gradient_error": "relative error, gradient", "route": "route",
    }  # fmt: skip
    caption = (
        "The whole model: medians over the rounds, spread is the interquartile range of both over its median; peaks "
        "and operators of its training; the worst error of layer and selected branch against float64"
    )
    two_digits = ("spread_percent", "output_error", "gradient_error")
    short = {name: rows[name].map("{:.2g}".format, na_action="ignore").astype(float) for name in two_digits}
    return frame_table(caption, rows.assign(**short), columns)


def operators_table(rows: pd.DataFrame) -> Table:
    """Tabulate the top operators of each backend side by side (`measures.top_rows`)."""
    return frame_table("Top operators of one training step", rows, {name: name for name in rows.columns})
