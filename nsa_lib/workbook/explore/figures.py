"""The charts of an exploration: where memory peaks, and which steps are slow.

Every function takes any run; a run that lacks what is asked for gives a chart that says so. Nothing is judged here.
"""

from __future__ import annotations

from html import escape

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.report.charts.chart import MOST_POINTS, VERMILION, Chart, finite, nothing
from nsa_lib.report.charts.steps import phase_peaks, step_time
from nsa_lib.report.tables import Table, frame_table
from nsa_lib.runs.recorded import Recorded

SLOWEST_SHOWN = 10
"""Rows of a table of slow steps; the chart marks as many as it has points."""


def peak_by_phase(run: Recorded) -> Chart:
    """Draw the peak allocated memory [MiB] of each phase of the main case, and name the step of its highest peak."""
    case_id = run.main_case
    if case_id is None:
        return nothing("Peak allocated by phase", "MiB")
    steps = run.of(case_id)
    figure = phase_peaks(steps)
    if finite(steps, ["peak_alloc_mib"]).size:
        highest = steps.loc[steps["peak_alloc_mib"].astype(float).idxmax()]
        # The last steps of a flat trend are equal: the chart names the first that reaches the peak.
        figure = _with_facts(figure, f"case {case_id}, peak first reached in step {highest['step']:,.0f}")
    return figure


def slow_steps_chart(run: Recorded, slow: pd.DataFrame) -> Chart:
    """Draw the step times [ms] of the main case with its slow steps (`measures.slow_steps`) marked."""
    case_id = run.main_case
    if case_id is None:
        return nothing("Step time", "ms")
    figure, marked = step_time(run.of(case_id)), slow[slow["case_id"] == case_id]
    figure = _with_facts(figure, f"case {case_id}, {len(marked)} slow")
    marked = marked.nlargest(MOST_POINTS, "times")
    if len(marked):
        marker = {"color": VERMILION, "symbol": "diamond", "size": 10}
        hover = "%{y:,.1f} ms, slow"
        figure.add_trace(
            go.Scatter(
                x=marked["step"], y=marked["step_ms"], name="slow", mode="markers", marker=marker, hovertemplate=hover
            )
        )
    return figure


def _with_facts(figure: Chart, facts: str) -> Chart:
    """Add facts to a chart's subtitle, and to what a screen reader says."""
    said = f"{figure.layout.title.subtitle.text}; {escape(facts)}"
    figure.layout.title.subtitle.text = said
    figure.layout.meta = {"description": f"{figure.layout.title.text}: {said}"}
    return figure


def closest_gates_table(gates: pd.DataFrame) -> Table:
    """Tabulate the gates that have a distance to their limit (`measures.closest_gates`)."""
    columns = {
        "name": "gate", "outcome": "outcome", "measured": "measured", "limit": "limit", "unit": "unit",
        "distance_percent": "left to the limit, %",
    }  # fmt: skip
    return frame_table("Gates, the closest to its limit first; negative is beyond it", gates, columns)


def slow_steps_table(slow: pd.DataFrame) -> Table:
    """Tabulate the steps that took longest of those that took unusually long (`measures.slow_steps`)."""
    columns = {
        "case_id": "case", "step": "step", "step_ms": "time, ms", "median_ms": "median, ms", "limit_ms": "limit, ms",
        "times": "times the median",
    }  # fmt: skip
    shown = slow.sort_values("times", ascending=False).head(SLOWEST_SHOWN)
    part = f", the slowest {len(shown)} of them shown" if len(shown) < len(slow) else ""
    return frame_table(f"Slow steps: {len(slow)}{part}", shown, columns)
