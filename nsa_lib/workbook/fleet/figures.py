"""The tables and charts of a fleet, of a handful or of thousands of members. Nothing is judged here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from nsa_lib.contract.figures import counted
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN
from nsa_lib.report.charts.chart import BLUE, GREY, MOST_POINTS, ORANGE, VERMILION, Chart, empty_chart, nothing, thinned
from nsa_lib.report.table import Cell, Table
from nsa_lib.report.tables import OUTCOMES, format_value, linked, verdict_cell
from nsa_lib.runs.recorded import Recorded
from nsa_lib.workbook.fleet.gates import Quarantined, quarantine, ruled
from nsa_lib.workbook.fleet.members import Fleet, Member, fleet_of
from nsa_lib.workbook.fleet.rules import bands

COLOURS = {FAIL: VERMILION, NOT_RUN: GREY, WARN: ORANGE, PASS: BLUE}
"""Of the outcomes in the heat map, worst first; a gate that a member does not have stays white."""

NAMED_ROWS = 40
"""Members that have their names beside a chart; of more there is room for their numbers alone."""

MOST_MARKED = 400
"""Members that are marked in a chart, the most certain first; of more the chart would be all marks."""


def fleet_figures(run: Recorded) -> dict[str, Chart]:
    """Return the charts of a fleet: gates, pace_and_memory."""
    return {"gates": gate_map(run), "pace_and_memory": pace_and_memory(run)}


def quarantine_table(run: Recorded) -> Table:
    """Tabulate the members to take out or look at, the most certain first, each with all reasons."""
    rows = [
        (_outcome_cell(one.findings[0].outcome), _named(run, one.name, one.member), Cell(one.why))
        for one in quarantine(ruled(run))
    ]
    header = ("do", "member", "why, the most certain first")
    return Table("Quarantine" if rows else "Quarantine: nobody", header, rows, sorts=True)


def _outcome_cell(outcome: str) -> Cell:
    icon, colour = OUTCOMES[outcome]
    words = {FAIL: "take out", WARN: "look at", NOT_RUN: "not judged"}
    return Cell(f"{icon} {words[outcome]}", colour=colour)


def _named(run: Recorded, name: str, member: Member | None) -> Cell:
    """Return a member's name, linked to its report; relative, so that fleet and members can be moved together."""
    told = run.info["report"]
    page = Path(told).parent if told else run.out_dir
    return linked(name, member.report if member else None, page)


def members_table(run: Recorded) -> Table:
    """Tabulate every member, a row each, linked to its report."""
    fleet, known = fleet_of(run), bands(fleet_of(run))
    of_member = {one.member.key: one for one in quarantine(ruled(run)) if one.member is not None}
    rows = []
    for member in fleet.members:
        band, found = known.get(str(member.kind)), of_member.get(member.key)
        slower = "" if band is None or member.step_ms is None else f"{member.step_ms / band.median_ms - 1:+.1%}"
        rows.append(
            (
                verdict_cell(member.verdict),
                _named(run, member.name, member),
                Cell(format_value(member.kind)),
                Cell(format_value(member.step_ms), numeric=True),
                Cell(slower, numeric=True),
                Cell("–" if member.peak_alloc_bytes is None else f"{member.peak_alloc_bytes:,}", numeric=True),
                Cell((member.fingerprint or "–")[:8]),
                Cell(", ".join(dict.fromkeys(f.rule for f in found.findings)) if found else ""),
            )
        )
    header = ("verdict", "member", "kind", "step, ms", "to median", "peak allocated, bytes", "bits", "named by")
    return Table("Members", header, rows, sorts=True)


def worst_first(fleet: Fleet, found: Sequence[Quarantined]) -> list[Member]:
    """Return the members as charts show them: those to take out first, the most certain on top, then the healthy."""
    places = {one.member.key: place for place, one in enumerate(found) if one.member is not None}
    return sorted(fleet.members, key=lambda member: places.get(member.key, len(found)))


def gate_map(run: Recorded) -> Chart:
    """Draw the outcome of each gate of each member, worst members on top: a fault of one GPU is a line of its own."""
    fleet, title = fleet_of(run), "Gates of every member"
    members = worst_first(fleet, quarantine(ruled(run)))
    names = list(dict.fromkeys(name for member in members for name in member.gates))
    if not names:
        return nothing(title, "member", "no member was judged")
    order = list(COLOURS)
    # Eight bits a cell: 5,000 members of 25 gates are 125 kB.
    cells = np.full((len(members), len(names)), -1, dtype=np.int8)
    columns = {name: place for place, name in enumerate(names)}
    for row, member in enumerate(members):
        for name, outcome in member.gates.items():
            cells[row, columns[name]] = order.index(outcome)
    red = sum(FAIL in member.gates.values() for member in members)
    facts = f"{counted(len(members), 'member')}, {red:,} with a gate that fails; worst on top"
    figure = empty_chart(title, "member", facts, legend=False)
    shown = np.where(cells < 0, np.nan, cells.astype(np.float32))
    figure.add_trace(go.Heatmap(z=shown, x=names, coloraxis="coloraxis", hoverongaps=False, hovertemplate=_HOVER))
    steps = [(place / len(order), colour) for place, colour in enumerate(COLOURS.values())]
    scale = [(at + over, colour) for at, colour in steps for over in (0, 1 / len(order))]
    words = {FAIL: "FAIL", NOT_RUN: "NOT RUN", WARN: "WARN", PASS: "PASS"}
    bar = {"tickvals": list(range(len(order))), "ticktext": list(words.values()), "outlinewidth": 0}
    figure.update_layout(coloraxis={"colorscale": scale, "cmin": -0.5, "cmax": len(order) - 0.5, "colorbar": bar})
    figure.update_xaxes(title_text="", tickformat="", tickangle=-60, tickvals=names, automargin=True)
    figure.update_yaxes(range=[len(members) - 0.5, -0.5], showgrid=False)
    if len(members) <= NAMED_ROWS:
        ticks = {"tickvals": list(range(len(members))), "ticktext": [member.name for member in members]}
        figure.update_yaxes(title_text="", automargin=True, **ticks)
    return figure.update_layout(height=min(900, 320 + 24 * len(members)), hovermode="closest")


_HOVER = "row %{y}: %{x}<extra></extra>"


def pace_and_memory(run: Recorded) -> Chart:
    """Draw step time and peak allocated memory of all members, those to take out marked with their names."""
    fleet, found = fleet_of(run), quarantine(ruled(run))
    members = [member for member in fleet.members if member.step_ms is not None]
    if not members:
        return nothing("Step time and memory of every member", "ms", "no member came to its end")
    known = bands(fleet)
    facts = "; ".join(
        f"{kind}: median {band.median_ms:.4g} ms, up to {band.limit_ms:.4g}" for kind, band in known.items()
    )
    figure = empty_chart("Step time and memory of every member", "", facts or "too few to learn a band", legend=False)
    figure.set_subplots(1, 2, subplot_titles=["step time, ms", "peak allocated, MiB"])
    named = [one.member.key for one in found if one.member is not None][:MOST_MARKED]
    marked = np.array([member.key in set(named) for member in members])
    for column, values in enumerate((_times(members), _memory(members)), start=1):
        _add_points(figure, members, values, marked, column)
    for band in known.values():
        line = {"color": VERMILION, "dash": "dash", "width": 1.5}
        figure.add_hline(band.limit_ms, line=line, row=1, col=1)
    # A few members would have ticks between them, several of one number.
    figure.update_xaxes(title_text="member", tickformat=",d", dtick=1 if len(members) <= NAMED_ROWS / 4 else None)
    figure.update_yaxes(tickformat=",~r", rangemode="normal")
    return figure.update_layout(height=420, margin={"t": 112}, hovermode="closest")


def _times(members: list[Member]) -> np.ndarray:
    return np.array([member.step_ms for member in members], dtype=float)


def _memory(members: list[Member]) -> np.ndarray:
    return np.array([(member.peak_alloc_bytes or np.nan) / 2**20 for member in members], dtype=float)


def _add_points(figure: Chart, members: list[Member], values: np.ndarray, marked: np.ndarray, column: int) -> None:
    """Add the members of one panel: the healthy thinned to what a chart can show, those to take out all and named."""
    places = np.arange(len(members))
    healthy = places[~marked]
    healthy = healthy[thinned(values[healthy], MOST_POINTS)] if len(healthy) else healthy
    dots = {"size": 5, "color": BLUE}
    hover = "member %{x}: %{y:,.6~g}<extra></extra>"
    figure.add_trace(
        go.Scatter(x=healthy, y=values[healthy], mode="markers", marker=dots, hovertemplate=hover, name="healthy"),
        row=1, col=column,
    )  # fmt: skip
    chosen = places[marked]
    marks = {"size": 9, "color": VERMILION, "symbol": "diamond"}
    names = [members[place].name for place in chosen]
    hover = "%{customdata}: %{y:,.6~g}<extra></extra>"
    figure.add_trace(
        go.Scatter(
            x=chosen, y=values[chosen], mode="markers", marker=marks, customdata=names, hovertemplate=hover,
            name="to take out or look at",
        ),
        row=1, col=column,
    )  # fmt: skip
