"""The charts of a capacity: predicted memory against length, batch and layers, the limit, and what it consists of."""

from __future__ import annotations

from math import log10

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.report.charts.chart import BLUE, GREEN, GREY, PURPLE, VERMILION, Chart, empty_chart, points
from nsa_lib.report.charts.prediction import stack_terms
from nsa_lib.report.tables import Table, frame_table

AXIS_TITLES = {"seq_len": "sequence length S in tokens", "batch": "sequences in a batch", "layers": "layers"}

SHOWN = 4.0
"""Times the limit up to which a curve is shown: what is beyond does not fit, however far."""

LOOKS = ((VERMILION, "solid"), (BLUE, "dash"), (PURPLE, "dot"), (GREEN, "dashdot"))


def capacity_curves(rows: pd.DataFrame, axis: str, limit_mib: float) -> Chart:
    """Draw reserved memory [MiB] against one axis of a sweep, a line a variant, with the limit across."""
    shown = rows[rows["axis"] == axis]
    curves = {name: found.set_index(axis)["peak_reserved_mib"] for name, found in shown.groupby("variant", sort=False)}
    return _curves(curves, f"Reserved against {axis_name(axis)}", axis, limit_mib)


def setting_curves(rows: pd.DataFrame, settings: dict[str, str], limit_mib: float) -> Chart:
    """Draw reserved memory [MiB] against the length under each allocator setting, `{column: setting}`."""
    own = rows[(rows["axis"] == "seq_len") & (rows["variant"] == "as asked")].set_index("seq_len")
    curves = {conf or "(none)": own[column] for column, conf in settings.items()}
    return _curves(curves, "Reserved under each allocator setting", "seq_len", limit_mib)


def terms_chart(rows: pd.DataFrame, axis: str) -> Chart:
    """Draw what the peak of allocated memory consists of, in percent, at each value of one axis."""
    own = rows[(rows["axis"] == axis) & (rows["variant"] == "as asked")].sort_values(axis)
    phases = ", ".join(dict.fromkeys(own["phase"]))
    figure = empty_chart(f"What the peak consists of, by {axis_name(axis)}", "% of the peak", f"peak in {phases}")
    shares = [{name: 100 * mib / sum(terms.values()) for name, mib in terms.items()} for terms in own["terms"]]
    stack_terms(figure, [f"{size:,}" for size in own[axis]], shares, hover="%{y:.1f} %")
    figure.update_xaxes(title_text=AXIS_TITLES[axis], type="category", tickformat="")
    return figure


def axis_name(axis: str) -> str:
    """Return an axis in a word."""
    return {"seq_len": "length", "batch": "batch", "layers": "layers"}[axis]


def _curves(curves: dict[str, pd.Series], title: str, axis: str, limit_mib: float) -> Chart:
    figure = empty_chart(title, "MiB", f"predicted; limit {limit_mib:,.0f} MiB")
    for (name, curve), (colour, dash) in zip(curves.items(), LOOKS):
        figure.add_trace(points(curve.index, curve, name, colour, dash, "MiB"))
    sizes = sorted({size for curve in curves.values() for size in curve.index})
    ticks = {"tickvals": sizes, "ticktext": [f"{size:,}" for size in sizes]}
    figure.update_xaxes(type="log", title_text=AXIS_TITLES[axis], **ticks)
    figures = pd.concat(curves.values())
    low, high = 0.8 * min(figures.min(), limit_mib), min(1.2 * max(figures.max(), limit_mib), SHOWN * limit_mib)
    figure.update_yaxes(type="log", dtick="D2", nticks=None, range=[log10(low), log10(high)])
    across = go.Scatter(x=[sizes[0], sizes[-1]], y=[limit_mib] * 2, name="limit", mode="lines", line={"color": GREY})
    figure.add_trace(across.update(hoverinfo="skip"))
    return figure


def fits_table(rows: pd.DataFrame) -> Table:
    """Tabulate the largest length, batch and layers that fit (`measures.fits_rows`)."""
    columns = {
        "axis": "the others as asked", "fits": "largest that fits", "at": "predicted at", "phase": "peak in",
        "dominated_by": "what the peak there consists of",
    }  # fmt: skip
    return frame_table("Predicted to fit; the largest point of the sweep that does", rows, columns)


def changes_table(rows: pd.DataFrame) -> Table:
    """Tabulate what checkpointing, the loss in chunks and the allocator setting change (`measures.changes_rows`)."""
    columns = {
        "change": "change", "peak_alloc_mib": "peak allocated, MiB", "peak_reserved_mib": "peak reserved, MiB",
        "seq_len": "largest S", "layers": "most layers",
    }  # fmt: skip
    return frame_table("Predicted at the sizes asked for, and the largest S and most layers that fit", rows, columns)
