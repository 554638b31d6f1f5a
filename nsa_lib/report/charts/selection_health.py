"""What the selection of each layer is worth: a chart and a table. Nothing is judged here."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from nsa_lib.judgement.selection import SHARES, selection_rows
from nsa_lib.report.charts.attention_map import BRANCH_WORDS
from nsa_lib.report.charts.chart import BLUE, GREEN, ORANGE, PURPLE, VERMILION, Chart, empty_chart, nothing
from nsa_lib.report.table import Cell, Table
from nsa_lib.report.tables import format_value
from nsa_lib.runs.recorded import Recorded

TITLE = "What selection gives, by layer"

NOT_SHOWN = "not shown: nothing was recorded of a selection, or the attention on trial has no select(x)"

WORDS = {
    "overlap": "picked by the query before too",
    "forced": "forced",
    "in_window": "picked within the window",
    "near_ties": "near ties",
    "never_picked": "blocks that nobody picks",
    "by_union": "tiles whose dq goes over a union",
}

COLOURS = dict(zip(SHARES, (BLUE, PURPLE, VERMILION, ORANGE, GREEN), strict=True))


def selection_chart(run: Recorded, case_id: str = "training") -> Chart:
    """Draw the shares of each layer in the last step that was recorded, and dotted in the first."""
    rows = selection_rows(run, case_id)
    if not rows[list(SHARES)].notna().any(axis=None):
        facts = NOT_SHOWN if rows.empty else "not shown: no query has more blocks than it reads"
        return nothing(TITLE, "share", facts).update_xaxes(title_text="layer")
    first, last = int(rows["step"].min()), int(rows["step"].max())
    figure = empty_chart(TITLE, "share", f"step {last:,}" + (f"; dotted: step {first:,}" if first < last else ""))
    for share in SHARES:
        for step, dash in {first: "dot", last: "solid"}.items():  # one step: solid
            figure.add_trace(_line(rows[rows["step"] == step], share, step, dash, named=step == last))
    figure.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")
    figure.update_xaxes(title_text="layer", dtick=max(1, int(rows["layer"].max()) // 12))
    return figure.update_layout(hovermode="closest")


def _line(rows: pd.DataFrame, share: str, step: int, dash: str, *, named: bool) -> go.Scatter:
    return go.Scatter(
        x=rows["layer"],
        y=rows[share].astype(float),
        name=WORDS[share],
        legendgroup=share,
        showlegend=named,
        mode="lines+markers",
        line={"color": COLOURS[share], "width": 2, "dash": dash},
        hovertemplate=f"layer %{{x}}, step {step:,}: %{{y:.1%}}",
    )


def selection_table(run: Recorded, case_id: str = "training") -> Table:
    """Tabulate them in percent, with the selected branch's gates and why a layer's selection gives nothing."""
    rows = selection_rows(run, case_id)
    if rows.empty:
        return Table(f"What selection gives is {NOT_SHOWN}", (), [])
    unions = ("by_union",) if rows["by_union"].notna().any() else ()
    head = ("layer", "step", *(f"{WORDS[share]}, %" for share in (*SHARES, *unions)))
    lines = [
        (
            Cell(str(row["layer"]), numeric=True),
            Cell(f"{row['step']:,}", numeric=True),
            *(_percent(row[share]) for share in (*SHARES, *unions)),
            Cell(format_value(_known(row["gate"])), numeric=True),
            _stuck(row),
            Cell(f"▲ nothing: {row['adds_nothing']}", colour="warn") if row["adds_nothing"] else Cell("✔ something"),
        )
        for row in rows.sort_values(["layer", "step"]).to_dict("records")
    ]
    caption = "What selection gives, of queries that have more blocks than they read"
    return Table(caption, (*head, "mean gate", "gates stuck", "what it gives"), lines)


def _percent(share: float | None) -> Cell:
    return Cell("–" if pd.isna(share) else f"{100 * share:.1f}", numeric=True)


def _known(value: float | None) -> float | None:
    return None if pd.isna(value) else float(value)


def _stuck(row: dict) -> Cell:
    if pd.isna(row["heads"]):
        return Cell("–")
    said = [f"{BRANCH_WORDS.get(name, name)} {heads} of {row['heads']:.0f} at {at}" for name, heads, at in row["stuck"]]
    return Cell("; ".join(said) or "none", colour="warn" if said else "")
