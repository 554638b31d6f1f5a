"""The charts of an exploration: where memory peaks, and which steps are slow.

Every function takes any run; a run that lacks what is asked for gives a chart that says so. Nothing is judged here.
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.contract.figures import written
from nsa_lib.report.charts.chart import (
    BLUE,
    MOST_POINTS,
    VERMILION,
    Chart,
    add_facts,
    empty_chart,
    finite,
    line,
    nothing,
    step_axis,
)
from nsa_lib.report.charts.overlay import MEASURED
from nsa_lib.report.charts.steps import phase_peaks, step_time
from nsa_lib.report.table import Table
from nsa_lib.report.tables import frame_table
from nsa_lib.runs.parameters import unknown
from nsa_lib.runs.recorded import Recorded
from nsa_lib.subject.config import ConfigError

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
        figure = add_facts(figure, f"case {case_id}, peak first reached in step {highest['step']:,.0f}")
    return figure


def slow_steps_chart(run: Recorded, slow: pd.DataFrame) -> Chart:
    """Draw the step times [ms] of the main case with its slow steps (`measures.slow_steps`) marked."""
    case_id = run.main_case
    if case_id is None:
        return nothing("Step time", "ms")
    figure, marked = step_time(run.of(case_id)), slow[slow["case_id"] == case_id]
    figure = add_facts(figure, f"case {case_id}, {len(marked)} slow")
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


def zoom(run: Recorded, column: str, *, steps: tuple[int, int], case_id: str | None = None) -> Chart:
    """Draw a column of a case from one step to another, both included; charts of a whole long run leave steps out.

    Args:
        run: any run.
        column: a number of `run.steps`, such as peak_alloc_mib, step_ms or loss.
        steps: the first and the last.
        case_id: a case of the run; its main case if none is named.

    Raises:
        ConfigError: for a column or a case that the run does not have.
    """
    if column not in MEASURED:
        raise ConfigError(unknown(column, "column of the steps", MEASURED))
    if case_id is not None and case_id not in run.info["case_ids"]:
        raise ConfigError(f"case_id={case_id!r}: accepts {', '.join(run.info['case_ids'])}")
    case_id, (first, last) = case_id or run.main_case, steps
    own = run.of(case_id) if case_id else run.steps.iloc[:0]
    shown = own[own["step"].between(first, last)]
    title, values = f"{column}, steps {first:,} to {last:,}", finite(shown, [column])
    if not values.size:
        there = f"the case has {own['step'].min():,} to {own['step'].max():,}" if len(own) else "no steps recorded"
        return nothing(title, column, there)
    facts = f"case {case_id}, {len(shown):,} of {len(own):,} steps; {written(values.min())} to {written(values.max())}"
    figure = empty_chart(title, column, facts, legend=False)
    figure.add_trace(line(shown, column, column, BLUE, "%{y:,.6g}"))
    step_axis(figure, shown)
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
