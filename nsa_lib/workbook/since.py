"""What is new since the last run of this configuration: gates that changed their outcome, and figures that moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nsa_lib.contract.figures import signed_percent
from nsa_lib.report.table import Cell, Table
from nsa_lib.report.tables import format_value, verdict_cell
from nsa_lib.report.verdict import STYLES
from nsa_lib.runs.found import newest_first
from nsa_lib.runs.recorded import MALFORMED, read_summary
from nsa_lib.workbook.run import FIGURES, Run

LABELS = ("tag", "out_dir", "accept_review", "stall_timeout_s", "total_timeout_s")
"""Parameters in which two runs of one configuration may differ: they change nothing that is computed."""

MACHINE = ("gpu", "gpu_uuid", "cpu")

CODE = ("torch", "triton", "driver", "source_sha256")
"""Facts that may have changed, and are told."""

MOVED_PERCENT = 1.0
"""Change of a figure from which on it is told."""


@dataclass(frozen=True)
class Last:
    """An earlier run, as it was judged when it ended: nothing of a long run is read or judged again."""

    run_id: str
    environment: Mapping[str, object]
    verdict: str
    outcomes: Mapping[str, str]
    """Of its gates, by their names."""
    figures: Mapping[str, float | None]
    """Its `key_figures`."""


def since_last(run: Run) -> Table:
    """Tabulate what is new in a run since the last one with the same parameters on the same machine."""
    if member := run.info.get("member"):  # thousands of them end at once, and each would read the others
        return Table(f"Compared with the others by its fleet, {member['fleet']}", ("", "before", "now"), [])
    last, passed_over = last_alike(run)
    if last is None:
        what = "New since the last run of this configuration: it is the first one"
    else:
        rows = [*_verdict_rows(last, run), *_gate_rows(last, run), *_figure_rows(last, run), *_code_rows(last, run)]
        what = f"{'New' if rows else 'Nothing new'} since the last run of this configuration, {last.run_id}"
    said = f"{what}; passed over: {'; '.join(passed_over)}" if passed_over else what
    return Table(said, ("", "before", "now"), [] if last is None else rows)


def last_alike(run: Run) -> tuple[Last | None, list[str]]:
    """Return the newest run before this one with the same parameters on the same machine that was judged.

    The texts say which newer ones of that kind were passed over, and why.
    """
    passed_over = []
    folders = (path.parent for path in run.folder.resolve().parent.glob("*/run.json"))
    for found in newest_first(folders):
        if found.problem or not _comes_before(found.info, run):
            continue
        try:
            return _as_judged(found.folder, found.info), passed_over
        except FileNotFoundError:
            passed_over.append(f"{found.folder.name}, which was not judged")
        except MALFORMED:
            passed_over.append(f"{found.folder.name}, whose summary.json is of another library, or torn")
    return None, passed_over


def _comes_before(info: Mapping[str, object], run: Run) -> bool:
    """Return whether a run is alike and older; one whose run.json lacks what tells it is not."""
    try:
        is_older = info["run_id"] != run.info["run_id"] and info["created"] <= run.info["created"]
        return is_older and _asked(info) == _asked(run.info)
    except (LookupError, TypeError):
        return False


def _as_judged(folder: Path, info: Mapping[str, object]) -> Last:
    summary = read_summary(folder)
    if summary["verdict"] not in STYLES:
        raise ValueError(f"its verdict is none of {', '.join(STYLES)}")
    outcomes = {str(gate["name"]): str(gate["outcome"]) for gate in summary["gates"]}
    figures = {name: _number(summary["key_figures"][name]) for name in FIGURES}
    return Last(str(info["run_id"]), info["environment"], summary["verdict"], outcomes, figures)


def _number(value: object) -> float | None:
    return None if value is None else float(value)


def _asked(info: Mapping[str, object]) -> dict[str, object]:
    parameters = {row["name"]: repr(row["value"]) for row in info["parameters"] if row["name"] not in LABELS}
    machine = {name: info["environment"].get(name) for name in MACHINE}
    return {"notebook": info["notebook"], "profile": info["profile"], **parameters, **machine}


def _verdict_rows(last: Last, run: Run) -> list[tuple[Cell, ...]]:
    if last.verdict == run.verdict:
        return []
    return [(Cell("verdict"), verdict_cell(last.verdict), verdict_cell(run.verdict))]


def _gate_rows(last: Last, run: Run) -> list[tuple[Cell, ...]]:
    before, now = last.outcomes, {gate.name: gate.outcome for gate in run.gates}
    names = [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]
    return [(Cell(f"gate {name}"), _outcome(before.get(name)), _outcome(now.get(name))) for name in names]


def _outcome(outcome: str | None) -> Cell:
    colour = {"PASS": "success", "FAIL": "error", "WARN": "warn", "NOT_RUN": "warn"}.get(outcome or "", "")
    return Cell((outcome or "no such gate").replace("_", " "), colour=colour)


def _figure_rows(last: Last, run: Run) -> list[tuple[Cell, ...]]:
    before, now = last.figures, run.summary["key_figures"]
    rows = []
    for name, (what, unit) in FIGURES.items():
        if not before[name] or now[name] is None:
            continue
        percent = 100 * (now[name] / before[name] - 1)
        if abs(percent) >= MOVED_PERCENT:
            said = f"{format_value(now[name], unit)} ({signed_percent(percent)})"
            rows.append((Cell(what), Cell(format_value(before[name], unit)), Cell(said)))
    return rows


def _code_rows(last: Last, run: Run) -> list[tuple[Cell, ...]]:
    before, now = last.environment, run.info["environment"]
    return [
        (Cell(name), Cell(format_value(before.get(name))[:12]), Cell(format_value(now.get(name))[:12]))
        for name in CODE
        if before.get(name) != now.get(name)
    ]
