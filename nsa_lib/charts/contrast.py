"""The charts of a backend contrast: speed of the layer and of the model, the sweep over lengths, memory.

They draw what is there: a contestant that was not measured is left out. Nothing is judged here.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.charts.chart import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILION,
    Chart,
    empty_chart,
    log_log_chart,
    nothing,
    points,
)
from nsa_lib.config import BACKEND_NAMES
from nsa_lib.contestants import DENSE, NO_BACKEND
from nsa_lib.contrast import CONTESTED, contrast_rows, first_faster, timing_rows
from nsa_lib.evidence import Evidence

_STYLES = ((BLUE, "solid"), (VERMILION, "dash"), (GREEN, "dot"), (PURPLE, "longdash"))
LINES = {**dict(zip(BACKEND_NAMES, _STYLES)), DENSE: (GREY, "dashdot")}
"""Colour and dash of each contestant, told apart by either."""

BRANCH_WORDS = {"slc": "selected branch", "cmp": "compressed", "win": "sliding", "all": "all branches", DENSE: "dense"}


def contrast_figures(run: Evidence) -> dict[str, Chart]:
    """Return the charts of a contrast: speed, model_speed, sweep, memory."""
    timed, seq_len = timing_rows(run), run.parameter("seq_len")
    here = timed[timed["seq_len"] == seq_len]
    return {
        "speed": time_bars(f"One layer at S={seq_len:,}", here[here["subject"] == "layer"]),
        "model_speed": time_bars(f"The whole model at S={seq_len:,}", here[here["subject"] == "model"]),
        "sweep": time_sweep(timed, first_faster(run)),
        "memory": memory_bars(contrast_rows(run)),
    }


def time_bars(title: str, timed: pd.DataFrame) -> Chart:
    """Draw the median time [ms] of forward and of backward of contestants, with their quartiles."""
    if timed.empty:
        return nothing(title, "ms", "nothing timed")
    figure = empty_chart(title, "ms", f"median of {timed['rounds'].max()} rounds, whiskers: quartiles")
    alone = timed["backend"].isin([NO_BACKEND, DENSE])
    names = [timed["branches"].map(BRANCH_WORDS).tolist(), timed["backend"].mask(alone, "").tolist()]
    for phase, colour in (("forward", BLUE), ("backward", VERMILION)):
        middle = timed[f"{phase}_ms"]
        whiskers = {
            "array": timed[f"{phase}_high_ms"] - middle,
            "arrayminus": middle - timed[f"{phase}_low_ms"],
            "color": GREY,
        }
        texts = [f"{ms:,.3g}" for ms in middle]
        bar = go.Bar(x=names, y=middle, name=phase, text=texts, marker={"color": colour}, error_y=whiskers)
        figure.add_trace(bar.update(textposition="outside", cliponaxis=False, hovertemplate="%{y:,.3f} ms"))
    figure.update_xaxes(title_text="", tickformat="")
    return figure


def time_sweep(timed: pd.DataFrame, crossings: dict[str, int | None]) -> Chart:
    """Draw the median time [ms] of a whole layer, forward and backward, against the length, and where dense is passed.

    Args:
        timed: as `contrast.timing_rows` returns it.
        crossings: for each backend the length from which it is faster than dense, or None.
    """
    title = "One layer against the length"
    layers = timed[(timed["subject"] == "layer") & timed["branches"].isin(["all", DENSE])].sort_values("seq_len")
    if layers.empty:
        return nothing(title, "ms", "nothing timed")
    passed = [f"{name} from S={length:,}" for name, length in crossings.items() if length is not None]
    facts = f"faster than dense: {', '.join(passed)}" if passed else "no backend is faster than dense at these lengths"
    figure = log_log_chart(title, "ms", facts if crossings else "dense was not timed", sorted(set(layers["seq_len"])))
    for name, (colour, dash) in LINES.items():
        own = layers[layers["backend"] == name]
        if len(own):
            figure.add_trace(points(own["seq_len"], own["total_ms"], name, colour, dash, "ms"))
    return figure


def memory_bars(rows: pd.DataFrame) -> Chart:
    """Draw the peak allocated and reserved memory [MiB] of the model's training with each backend.

    Args:
        rows: as `contrast.contrast_rows` returns it.
    """
    measured = rows.dropna(subset=["peak_alloc_mib"])
    if measured.empty:
        return nothing("Peak memory of the training", "MiB")
    peaks = measured.loc[measured["backend"].isin(BACKEND_NAMES), "peak_alloc_mib"]
    facts = "a process each"
    if len(peaks) > 1:
        facts += f"; allocated: backends within {100 * (peaks.max() / peaks.min() - 1):.1f} %"
    figure = empty_chart("Peak memory of the training", "MiB", facts)
    for column, name, colour in (
        ("peak_alloc_mib", "peak allocated", BLUE),
        ("peak_reserved_mib", "peak reserved", VERMILION),
    ):
        texts = [f"{mib:,.4g}" for mib in measured[column]]
        bar = go.Bar(x=measured["backend"], y=measured[column], name=name, text=texts, marker={"color": colour})
        figure.add_trace(bar.update(textposition="outside", cliponaxis=False, hovertemplate="%{y:,.1f} MiB"))
    order = [name for name in CONTESTED if name in set(measured["backend"])]
    figure.update_xaxes(title_text="", tickformat="", categoryorder="array", categoryarray=order)
    return figure
