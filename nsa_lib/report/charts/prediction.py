"""The chart of predicted memory: what each phase's peak consists of, with what was measured on top. In MiB."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.judgement.prediction import RESERVED, prediction_rows
from nsa_lib.report.charts.chart import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, Chart, empty_chart, nothing
from nsa_lib.runs.recorded import Recorded

TERM_COLOURS = {
    "parameters": GREY, "optimizer": "#a9b0b8", "gradients": BLUE, "activations": GREEN, "loss": PURPLE,
    "communication": "#8c6d46", "temporaries": VERMILION, "tables": ORANGE, "workspace": SKY,
}  # fmt: skip
"""From the bottom of a bar to its top: what always stays first."""

TITLE = "Predicted memory by phase"


def prediction_figure(run: Recorded, case_id: str) -> Chart:
    """Draw what a case's predicted peaks consist of, and the measured ones as diamonds."""
    if run.case(case_id) is None:
        return nothing(TITLE, "MiB")
    rows = prediction_rows(run, [case_id])
    rows = rows[rows["phase"] != RESERVED]
    reason = "".join(rows["reason"])
    if reason:
        return nothing(TITLE, "MiB", f"no prediction: {reason}")
    worst = rows["difference_percent"].abs().max()
    facts = "nothing was measured" if pd.isna(worst) else f"measured peaks differ by {worst:.1f} % at most"
    figure = empty_chart(TITLE, "MiB", f"{case_id}; {facts}")
    stack_terms(figure, list(rows["phase"]), list(rows["terms"]))
    diamonds = {"symbol": "diamond", "size": 11, "color": "#ffffff", "line": {"color": "#1f2328", "width": 2}}
    measured = go.Scatter(x=rows["phase"], y=rows["measured_mib"], name="measured", mode="markers", marker=diamonds)
    figure.add_trace(measured.update(hovertemplate="%{y:,.1f} MiB"))
    figure.update_xaxes(title_text="phase of the step", tickformat="")
    return figure


def stack_terms(figure: Chart, x: list, terms: list[Mapping[str, float]], hover: str = "%{y:,.1f} MiB") -> None:
    """Add a stacked bar for each x, a part for each term that is anywhere at least 0.1 % of its bar."""
    for name, colour in TERM_COLOURS.items():
        parts = [held.get(name, 0.0) for held in terms]
        if any(part > 0.001 * sum(held.values()) for part, held in zip(parts, terms, strict=True)):
            bar = go.Bar(x=x, y=parts, name=name, marker={"color": colour}, hovertemplate=hover)
            figure.add_trace(bar)
    figure.update_layout(barmode="stack", bargap=0.5, height=440)
