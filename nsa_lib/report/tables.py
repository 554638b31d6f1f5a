"""Tables of a run, as HTML for a notebook and as text for a prompt.

Numbers carry thousands separators and units, an outcome is an icon and a word (never colour alone), and every text is
escaped. Nothing is judged here.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from nsa_lib.contract.figures import signed_percent, with_unit
from nsa_lib.judgement.false_alarms import counted, gate_kind
from nsa_lib.judgement.gate import PASS, ended_well
from nsa_lib.judgement.prediction import DIFFERENCE_PERCENT, PHASES, RESERVED
from nsa_lib.report.table import OUTCOME, Cell, Table
from nsa_lib.report.verdict import STYLES

OUTCOMES = {"FAIL": ("✘", "error"), "NOT_RUN": ("○", "warn"), "WARN": ("▲", "warn"), "PASS": ("✔", "success")}
"""Icon and JupyterLab colour of a gate's outcome, worst first."""


def gates_table(
    gates: Iterable[Mapping], *, caption: str = "Gates", kind: str = "gate", folds_passed: bool = False
) -> Table:
    """Tabulate gate results as `ranked` orders them; `kind` is the heading over their names.

    A column says how often each was false on honest runs, if that was counted for one of them.
    """
    header, ordered, rates = (OUTCOME, kind, "measured", "limit", "margin", "detail"), ranked(gates), counted().rates
    caption = caption if ordered else f"{caption}: none"
    rows, found = [gate_row(gate) for gate in ordered], [rates.get(gate_kind(str(gate["name"]))) for gate in ordered]
    if any(found):
        header, caption = (*header, "false alarms"), f"{caption}. {counted().said}."
        rows = [(*row, Cell(rate.said if rate else "", numeric=True)) for row, rate in zip(rows, found, strict=True)]
    folds = [folds_passed and gate["outcome"] == PASS for gate in ordered]
    anchors = [f"{kind}-{gate['name']}" for gate, fold in zip(ordered, folds, strict=True) if not fold]
    shown, folded = ([row for row, fold in zip(rows, folds, strict=True) if fold is side] for side in (False, True))
    return Table(caption, header, shown, anchors, folded, "passed", sorts=True)


def ranked(gates: Iterable[Mapping]) -> list[Mapping]:
    """Return gates with those that decide against a run first and those that are not required last."""
    order = list(OUTCOMES)
    return sorted(gates, key=lambda gate: (not gate["required"], order.index(gate["outcome"])))


def gate_row(gate: Mapping) -> tuple[Cell, ...]:
    """Return the cells of a gate: outcome, name, measured, limit, margin in percent of the limit, detail."""
    icon, colour = OUTCOMES[gate["outcome"]]
    outcome = f"{icon} {gate['outcome'].replace('_', ' ')}"
    return (
        Cell(outcome if gate["required"] else f"{outcome}, not required", colour=colour if gate["required"] else ""),
        Cell(gate["name"]),
        *(_figure(gate[name], gate["unit"] or "") for name in ("measured", "limit")),
        Cell(_percentage(gate["margin"], gate["limit"]), numeric=True),
        Cell(gate["detail"], folded=gate.get("user_traceback", ""), folded_as="traceback"),
    )


def _figure(value: object, unit: str) -> Cell:
    """Return a gate's figure, flush right as all of its column; one in words may be long, and may break."""
    return Cell(format_value(value, unit), numeric=True, breaks=isinstance(value, str))


MOST_PERCENT = 9_999
"""Margin from which on its digits say nothing: a limit may be a rounding of 1e-11."""


def _percentage(margin: object, limit: object) -> str:
    """Return a margin as a signed percentage of its limit, or "–" where there is nothing to divide by."""
    finite = all(isinstance(value, numbers.Real) and math.isfinite(value) for value in (margin, limit))
    if not finite or not limit:
        return "–"
    share = 100 * margin / abs(limit)
    if abs(share) > MOST_PERCENT:
        return f"beyond {math.copysign(MOST_PERCENT, share):+,.0f} %"
    return f"{share:+,.{1 if abs(share) < 100 else 0}f} %"


def parameters_table(parameters: Iterable[Mapping]) -> Table:
    """Tabulate effective parameters: `name`, `value`, `origin`, `checklist` and whether it `differs` from that.

    Those that were given or differ are shown, the others folded.
    """
    shown, folded = [], []
    for parameter in parameters:
        row = (
            Cell(parameter["name"]),
            Cell(format_value(parameter["value"]), colour="warn" if parameter["differs"] else ""),
            Cell(parameter["origin"]),
            Cell(format_value(parameter["checklist"])),
            Cell("▲ differs" if parameter["differs"] else "", colour="warn" if parameter["differs"] else ""),
        )
        (shown if parameter["differs"] or parameter["origin"] == "given" else folded).append(row)
    header = ("parameter", "value", "origin", "checklist", "")
    because = "more" if shown else "as decided for you"
    return Table("Effective parameters", header, shown, folded=folded, folded_because=because)


def cases_table(cases: pd.DataFrame) -> Table:
    """Tabulate the cases of a run: `case_id`, `status`, `reason`, `steps_done`, `seconds`.

    The end of its stderr, with the stacks of a hang, is folded below the reason.
    """
    rows = [
        (
            Cell(case["case_id"]),
            _status_cell(case),
            Cell(format_value(case["steps_done"]), numeric=True),
            Cell(format_value(case["seconds"], "s"), numeric=True),
            Cell(format_value(case["reason"]), folded=str(case.get("stderr_tail") or "").strip()),
        )
        for case in cases.to_dict("records")
    ]
    return Table("Cases", ("case", "status", "steps", "time", "reason"), rows)


def _status_cell(case: Mapping) -> Cell:
    icon, colour = ("✔", "success") if ended_well(case) else ("✘", "error")
    return Cell(f"{icon} {case['status']}", colour=colour)


def advice_table(advice: Iterable[str]) -> Table:
    """Tabulate what a user may want to change; it decides nothing."""
    rows = [(Cell(text),) for text in advice]
    return Table(f"Advice, which decides nothing{'' if rows else ': none'}", ("advice",), rows)


def frame_table(caption: str, frame: pd.DataFrame, columns: Mapping[str, str]) -> Table:
    """Tabulate columns of a frame under headings of their own, `{column: heading}`; units belong in the headings."""
    rows = [
        [Cell(format_value(row[column]), numeric=pd.api.types.is_numeric_dtype(frame[column])) for column in columns]
        for row in frame.to_dict("records")
    ]
    return Table(caption, list(columns.values()), rows)


def prediction_table(rows: pd.DataFrame) -> Table:
    """Tabulate predicted and measured peaks, a row a case (`prediction.prediction_rows`)."""
    phases = [phase for phase in (*PHASES, RESERVED) if phase in set(rows["phase"])]
    missing = ["no prediction"] if any(rows["reason"]) else []
    lines = []
    for case_id, found in rows.groupby("case_id", sort=False):
        by_phase = found.set_index("phase").to_dict("index")
        reasons = [Cell("".join(found["reason"])) for _ in missing]
        lines.append((Cell(str(case_id)), *(_beside(by_phase.get(phase)) for phase in phases), *reasons))
    caption = "Peaks in MiB: predicted → measured (difference); predictions are advice and decide nothing"
    return Table(caption, ("case", *phases, *missing), lines)


def _beside(row: Mapping | None) -> Cell:
    columns = ("predicted_mib", "measured_mib", "difference_percent")
    return beside_cell(*(row[name] for name in columns)) if row else Cell("–", numeric=True)


def beside_cell(predicted_mib: float, measured_mib: float, difference_percent: float = math.nan) -> Cell:
    """Return a cell of a predicted and a measured size, with what they differ by where it is to be shown."""
    said = f"{format_mib(predicted_mib)} → {format_mib(measured_mib)}"
    if math.isnan(difference_percent):
        return Cell(said, numeric=True)
    colour = "warn" if abs(difference_percent) > DIFFERENCE_PERCENT else ""
    return Cell(f"{said} ({signed_percent(difference_percent)})", numeric=True, colour=colour)


def format_mib(mib: float) -> str:
    """Format a size: a decimal below 1,000 MiB, none above; one that is not known is "–"."""
    return "–" if math.isnan(mib) else f"{mib:,.0f}" if mib >= 1000 else f"{mib:,.1f}"


def format_value(value: object, unit: str = "") -> str:
    """Format a value for reading: thousands separators, four significant digits, the unit; absent is "–"."""
    if value is None or value == [] or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return with_unit(value, unit)


def verdict_cell(word: str) -> Cell:
    """Return a verdict as its icon and word in its colour."""
    icon, colour = STYLES[word]
    return Cell(f"{icon} {word}", colour=colour)


def linked(text: str, report: object, folder: Path) -> Cell:
    """Link a text to a report; relative if the report lies inside `folder`, so that both can be moved together.

    What stands in a run folder or in the history is not trusted: only the path of a file becomes a link.
    """
    if not isinstance(report, str) or not os.path.isabs(report):
        return Cell(text)
    path = Path(os.path.normpath(report))
    inside = path.is_relative_to(folder)
    return Cell(text, link=quote(str(path.relative_to(folder))) if inside else path.as_uri())
