"""Charts over several runs: two laid over each other, and a figure from run to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nsa_lib.contract.figures import counted
from nsa_lib.contract.heartbeat import STEP_COLUMNS
from nsa_lib.report.charts.chart import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILION,
    Chart,
    empty_chart,
    finite,
    looks,
    nothing,
    step_axis,
    trace,
)
from nsa_lib.runs.parameters import unknown
from nsa_lib.runs.recorded import Recorded
from nsa_lib.runs.steps import TEXTS
from nsa_lib.subject.config import ConfigError

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, GREY)

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star")

TRAINING = "training"

MEASURED = tuple(name for name in STEP_COLUMNS if name not in (*TEXTS, "step", "ts"))
"""Columns of the steps that can be drawn."""


def no_figures(run: Recorded) -> dict[str, Chart]:
    """Return no charts, those of a run that measured nothing itself."""
    return {}


def overlay(run_a, run_b, column: str, title: str, unit: str) -> Chart:
    """Draw a column of the steps of two runs over each other.

    Args:
        run_a: has `.info` (run.json) and `.steps`.
        run_b: the same; also of another notebook, then each shows a case of its own.
        column: of the steps.
        title: of the chart.
        unit: of the column.

    Raises ConfigError for a column that steps do not have.
    """
    if column not in MEASURED:
        raise ConfigError(unknown(column, "column of the steps", MEASURED))
    cases = _cases_to_lay_over(run_a.steps, run_b.steps)
    shown = [run.steps[run.steps["case_id"] == case_id] for run, case_id in zip((run_a, run_b), cases, strict=True)]
    if not any(finite(steps, [column]).size for steps in shown):
        return nothing(title, unit)
    facts = f"case {cases[0]}" if cases[0] == cases[1] else f"A: case {cases[0]}, B: case {cases[1]}"
    figure = empty_chart(title, unit, escape(facts))
    for name, run, steps in zip("AB", (run_a, run_b), shown, strict=True):
        label, (colour, dash) = escape(f"{name}: {run.info['run_id']}"), looks("AB")[name]
        figure.add_traces(trace(steps, column, label, colour, f"%{{y:,.1f}} {unit}", dash=dash))
    step_axis(figure, pd.concat(shown))
    figure.update_layout(showlegend=True, margin={"t": 120})
    return figure


def over_runs(runs: Sequence[Mapping], column: str, title: str, unit: str) -> Chart:
    """Draw a figure over the time of the runs, a line for each notebook, profile and machine.

    Args:
        runs: each with `created` (ISO time), `notebook`, `profile`, `machine`, `run_id` and the column.
        column: a figure; runs that have none are left out.
        title: of the chart.
        unit: of the column.
    """
    frame = pd.DataFrame(runs)
    drawn = frame[pd.to_numeric(frame[column], errors="coerce").notna()] if len(frame) else frame
    if drawn.empty:
        return nothing(title, unit, "no run with this figure yet")
    figure = empty_chart(title, unit, counted(len(drawn), "run"))
    series = drawn.sort_values("created").groupby(["notebook", "profile", "machine"], sort=True, dropna=False)
    for number, (names, rows) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        marker = {"size": 8, "color": colour, "symbol": SYMBOLS[number // len(COLOURS) % len(SYMBOLS)]}
        label = escape(", ".join(name for name in names if isinstance(name, str) and name))  # NaN: no machine is known
        hover = f"%{{y:,.1f}} {unit}<br>%{{text}}"
        texts = [escape(run_id) for run_id in rows["run_id"]]
        style = {"color": colour, "width": 2}
        points = go.Scatter(x=rows["created"], y=rows[column].astype(float), name=label, text=texts)
        figure.add_trace(points.update(mode="lines+markers", line=style, marker=marker, hovertemplate=hover))
    figure.update_xaxes(title_text="run made at (UTC)", tickformat="", type="date")
    figure.update_yaxes(rangemode="tozero")
    # A legend of many long names grows upwards into the title; below the axis it has room.
    legend = {"orientation": "v", "y": -0.24, "yanchor": "top"}
    figure.update_layout(showlegend=True, hovermode="closest", legend=legend, margin={"t": 72})
    figure.update_layout(height=380 + 22 * len(series))
    return figure


def _cases_to_lay_over(steps_a: pd.DataFrame, steps_b: pd.DataFrame) -> tuple[str, str]:
    """Return the case to show of each run: the training, else the longest that both have, else each its longest."""
    counts_a, counts_b = steps_a["case_id"].value_counts(), steps_b["case_id"].value_counts()
    both = [case_id for case_id in counts_a.index if case_id in counts_b.index]
    common = TRAINING if TRAINING in both else (both or [None])[0]
    return tuple(common or _longest(counts) for counts in (counts_a, counts_b))


def _longest(counts: pd.Series) -> str:
    if counts.empty:
        return "none"
    return TRAINING if TRAINING in counts.index else str(counts.index[int(np.argmax(counts.to_numpy()))])
