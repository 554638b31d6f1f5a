"""The charts and tables of a capacity: predicted memory, the limit, what it consists of, what fits."""

from __future__ import annotations

from math import log10

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.report.charts.chart import BLUE, GREEN, GREY, PURPLE, VERMILION, Chart, empty_chart, points
from nsa_lib.report.charts.prediction import stack_terms
from nsa_lib.report.table import Table
from nsa_lib.report.tables import frame_table
from nsa_lib.workbook.capacity.fits import ABOVE, BELOW
from nsa_lib.workbook.capacity.measures import SETTINGS

AXIS_TITLES = {"seq_len": "sequence length S in tokens", "batch": "sequences in a batch", "layers": "layers"}

SHOWN = 4.0
"""Times the limit up to which a curve is shown: what is beyond does not fit, however far."""

LOOKS = ((VERMILION, "solid"), (BLUE, "dash"), (PURPLE, "dot"), (GREEN, "dashdot"))
"""Of the curves of a chart, in turn."""


def capacity_curves(rows: pd.DataFrame, axis: str, limit_mib: float) -> Chart:
    """Draw reserved memory [MiB] against one axis of a sweep, a line a variant, with the limit across."""
    shown = rows[(rows["axis"] == axis) & ~rows["variant"].isin(SETTINGS)]
    return _curves(shown, f"Reserved against {axis_name(axis)}", axis, limit_mib)


def setting_curves(rows: pd.DataFrame, limit_mib: float) -> Chart:
    """Draw reserved memory [MiB] against the length under each allocator setting, with the limit across."""
    shown = rows[(rows["axis"] == "seq_len") & rows["variant"].isin(SETTINGS)]
    return _curves(shown, "Reserved under each allocator setting", "seq_len", limit_mib)


def terms_chart(rows: pd.DataFrame, axis: str) -> Chart:
    """Draw what the peak of allocated memory consists of, in percent, at each value of one axis."""
    own = rows[(rows["axis"] == axis) & (rows["variant"] == "as asked")].sort_values(axis)
    phases = ", ".join(dict.fromkeys(own["phase"]))
    figure = empty_chart(f"What the peak consists of, by {axis_name(axis)}", "% of the peak", f"peak in {phases}")
    shares = [{name: 100 * mib / sum(terms.values()) for name, mib in terms.items() if mib} for terms in own["terms"]]
    stack_terms(figure, [f"{size:,}" for size in own[axis]], shares, hover="%{y:.1f} %")
    figure.update_xaxes(title_text=AXIS_TITLES[axis], type="category", tickformat="")
    return figure


def axis_name(axis: str) -> str:
    """Return an axis in a word."""
    return {"seq_len": "length", "batch": "batch", "layers": "layers"}[axis]


def _curves(rows: pd.DataFrame, title: str, axis: str, limit_mib: float) -> Chart:
    facts = "predicted; bars are ranges" if any(rows["reason"]) else "predicted"
    figure = empty_chart(title, "MiB", f"{facts}; limit {limit_mib:,.0f} MiB")
    for place, (variant, curve) in enumerate(rows.groupby("variant", sort=False)):
        colour, dash = LOOKS[place % len(LOOKS)]
        figure.add_trace(_curve(curve.sort_values(axis), axis, str(variant).removeprefix("allocator "), colour, dash))
    sizes = sorted(set(rows[axis]))
    ticks = {"tickvals": sizes, "ticktext": [f"{size:,}" for size in sizes]}
    figure.update_xaxes(type="log", title_text=AXIS_TITLES[axis], **ticks)
    lowest, highest = rows["lowest_mib"], rows["highest_mib"]
    low = 0.8 * min([*lowest[lowest > 0], limit_mib])
    high = min(1.2 * max(highest.max(), limit_mib), SHOWN * limit_mib)
    figure.update_yaxes(type="log", dtick="D2", nticks=None, range=[log10(low), log10(high)])
    across = go.Scatter(x=[sizes[0], sizes[-1]], y=[limit_mib] * 2, name="limit", mode="lines", line={"color": GREY})
    figure.add_trace(across.update(hoverinfo="skip"))
    return figure


def _curve(curve: pd.DataFrame, axis: str, name: str, colour: str, dash: str) -> go.Scatter:
    mib = curve["peak_reserved_mib"]
    trace = points(curve[axis], mib, name, colour, dash, "MiB")
    if not any(curve["reason"]):
        return trace
    ends = zip(curve["lowest_mib"], curve["highest_mib"], curve["reason"], strict=True)
    said = [f"{low:,.0f} to {high:,.0f} MiB: {reason}" if reason else "" for low, high, reason in ends]
    bars = {"symmetric": False, "array": curve["highest_mib"] - mib, "arrayminus": mib - curve["lowest_mib"]}
    return trace.update(error_y=bars, text=said, hovertemplate="%{y:,.1f} MiB %{text}")


def fits_table(rows: pd.DataFrame, subject: str) -> Table:
    """Tabulate the largest length, batch and layers of what is predicted that fit (`fits.fits_rows`)."""
    columns = {
        "axis": "the others as asked", "fits": "largest that fits", "at": "predicted at", "phase": "peak in",
        "dominated_by": "what the peak there consists of",
    }  # fmt: skip
    return frame_table(
        f"{subject}: predicted to fit, with reserved {ABOVE:.0%} above its prediction to {BELOW:.0%} below",
        rows,
        columns,
    )


def changes_table(rows: pd.DataFrame) -> Table:
    """Tabulate what checkpointing, the loss in chunks and the allocator setting change (`fits.changes_rows`)."""
    columns = {
        "change": "change", "peak_alloc_mib": "allocated, MiB", "lowest_mib": "reserved from, MiB",
        "highest_mib": "to, MiB", "seq_len": "largest S", "layers": "most layers",
    }  # fmt: skip
    return frame_table("Peaks predicted at the sizes asked for, and the largest that fit", rows, columns)


def ranges_table(rows: pd.DataFrame) -> Table:
    """Tabulate the predictions that are a range, and why (`ranges.with_ranges`)."""
    columns = {
        "variant": "change", "seq_len": "S", "batch": "batch", "layers": "layers", "peak_alloc_mib": "allocated, MiB",
        "lowest_mib": "reserved from, MiB", "highest_mib": "to, MiB", "reason": "why it is a range",
    }  # fmt: skip
    return frame_table("Reserved memory that is a range", rows[rows["reason"] != ""], columns)
