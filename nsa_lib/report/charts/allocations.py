"""The chart of what is allocated over one step, predicted beside measured, and what else a snapshot left. In MiB."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go

from nsa_lib.judgement.prediction import PHASES
from nsa_lib.report.charts.chart import BLUE, VERMILION, Chart, empty_chart, nothing
from nsa_lib.report.table import Cell, Table
from nsa_lib.report.tables import linked
from nsa_lib.runs.recorded import Recorded

SNAPSHOT_CASE = "snapshot"

TITLE = "Allocated over one step"

LEFT = {
    "memory_snapshot.pickle": "every allocation of the step, for PyTorch's memory viewer: pytorch.org/memory_viz",
    "trace.json.gz": "operators and kernels of two steps, for Perfetto: ui.perfetto.dev",
}
"""Files that the case leaves, and what shows them: pages that read a file without sending it."""


def allocation_chart(run: Recorded) -> Chart | None:
    """Draw what was allocated from one allocation to the next, by phase; None for a run that asked for no snapshot."""
    if run.case(SNAPSHOT_CASE) is None:
        return None
    measured = run.fact(SNAPSHOT_CASE, "allocations")
    if measured is None:
        return nothing(TITLE, "MiB", "the case did not come to the step that it records")
    predicted = (run.fact(SNAPSHOT_CASE, "prediction") or {}).get("allocations")
    curves = {"measured": measured["phases"], **({"predicted": predicted} if predicted else {})}
    peaks = {name: max(max(phase["mib"]) for phase in curve.values()) for name, curve in curves.items()}
    events = sum(phase["events"] for phase in measured["phases"].values())
    said = ", ".join(f"{name} peak {mib:,.1f} MiB" for name, mib in peaks.items())
    facts = f"step {measured['step']}, {events:,} allocations and frees; {said}"
    figure = empty_chart(TITLE, "MiB", facts if predicted else f"{facts}; no prediction")
    for (name, curve), colour, dash in zip(curves.items(), (VERMILION, BLUE), ("solid", "dot"), strict=False):
        x, y = _line(curve)
        style = {"color": colour, "width": 2, "dash": dash}
        figure.add_trace(go.Scatter(x=x, y=y, name=name, mode="lines", line=style, hovertemplate="%{y:,.1f} MiB"))
    for border in range(1, len(PHASES)):
        figure.add_vline(border, line={"color": "#7a828c", "width": 1, "dash": "dot"})
    ticks = {"tickvals": [place + 0.5 for place in range(len(PHASES))], "ticktext": list(PHASES)}
    figure.update_xaxes(title_text="allocations and frees of each phase, in order", range=[0, len(PHASES)], **ticks)
    return figure.update_yaxes(rangemode="tozero")


def _line(curve: Mapping[str, Mapping]) -> tuple[list[float], list[float]]:
    """Return a curve on an axis where every phase is of length 1: a prediction may have some allocations more."""
    x, y = [], []
    for place, phase in enumerate(PHASES):
        if phase in curve:
            found = curve[phase]
            x += [place + at / max(found["events"], 1) for at in found["at"]]
            y += found["mib"]
    return x, y


def snapshot_table(run: Recorded) -> Table:
    """Tabulate the files that a snapshot left, as links, with what shows them."""
    if run.case(SNAPSHOT_CASE) is None:
        return Table("No snapshot of a step's allocations was asked for: memory_snapshot=True leaves one", (), [])
    folder = run.folder.resolve() / "cases" / SNAPSHOT_CASE
    report = run.info.get("report")
    near = Path(report).parent if isinstance(report, str) else run.folder.resolve()
    rows = [
        (linked(name, str(folder / name), near), Cell(what)) for name, what in LEFT.items() if (folder / name).is_file()
    ]
    return Table("Left for other viewers", ("file", "what it shows"), rows)
