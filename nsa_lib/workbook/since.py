"""What is new since the last run of this configuration: gates that changed their outcome, and figures that moved."""

from __future__ import annotations

from collections.abc import Mapping

from nsa_lib.report.tables import Cell, Table, format_value, verdict_cell
from nsa_lib.runs.found import newest_first
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.comparison import FIGURES
from nsa_lib.workbook.run import Run, judged_run, key_figures

LABELS = ("tag", "out_dir", "accept_review", "stall_timeout_s", "total_timeout_s")
"""Parameters in which two runs of one configuration may differ: they change nothing that is computed."""

MACHINE = ("gpu", "gpu_uuid", "cpu")

CODE = ("torch", "triton", "driver", "source_sha256")
"""Facts that may have changed, and are told."""

MOVED_PERCENT = 1.0
"""Change of a figure from which on it is told."""


def since_last(run: Run) -> Table:
    """Tabulate what is new in a run since the last one with the same parameters on the same machine."""
    if member := run.info.get("member"):  # thousands of them end at once, and each would read the others
        return Table(f"Compared with the others by its fleet, {member['fleet']}", ("", "before", "now"), [])
    last = last_alike(run)
    if last is None:
        return Table("New since the last run of this configuration: it is the first one", ("", "before", "now"), [])
    rows = [*_verdict_rows(last, run), *_gate_rows(last, run), *_figure_rows(last, run), *_code_rows(last, run)]
    what = "New" if rows else "Nothing new"
    return Table(f"{what} since the last run of this configuration, {last.info['run_id']}", ("", "before", "now"), rows)


def last_alike(run: Run) -> Run | None:
    """Return the newest run before this one with the same parameters on the same machine, or None.

    Runs that cannot be read are passed over.
    """
    wanted = _asked(run.info)
    folders = (path.parent for path in run.folder.resolve().parent.glob("*/run.json"))
    for found in newest_first(folders):
        if found.problem or found.info["run_id"] == run.info["run_id"] or found.info["created"] > run.info["created"]:
            continue
        try:
            if _asked(found.info) == wanted:
                return judged_run(found.folder)
        except (ConfigError, LookupError, TypeError):
            continue
    return None


def _asked(info: Mapping[str, object]) -> dict[str, object]:
    parameters = {row["name"]: repr(row["value"]) for row in info["parameters"] if row["name"] not in LABELS}
    machine = {name: info["environment"].get(name) for name in MACHINE}
    return {"notebook": info["notebook"], "profile": info["profile"], **parameters, **machine}


def _verdict_rows(last: Run, run: Run) -> list[tuple[Cell, ...]]:
    if last.verdict == run.verdict:
        return []
    return [(Cell("verdict"), verdict_cell(last.verdict), verdict_cell(run.verdict))]


def _gate_rows(last: Run, run: Run) -> list[tuple[Cell, ...]]:
    before, now = ({gate.name: gate.outcome for gate in judged.gates} for judged in (last, run))
    names = [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]
    return [(Cell(f"gate {name}"), _outcome(before.get(name)), _outcome(now.get(name))) for name in names]


def _outcome(outcome: str | None) -> Cell:
    colour = {"PASS": "success", "FAIL": "error", "WARN": "warn", "NOT_RUN": "warn"}.get(outcome or "", "")
    return Cell((outcome or "no such gate").replace("_", " "), colour=colour)


def _figure_rows(last: Run, run: Run) -> list[tuple[Cell, ...]]:
    before, now = key_figures(last), key_figures(run)
    rows = []
    for name, (what, unit) in FIGURES.items():
        if not before[name] or now[name] is None:
            continue
        percent = 100 * (now[name] / before[name] - 1)
        if abs(percent) >= MOVED_PERCENT:
            said = f"{format_value(now[name], unit)} ({percent:+.1f} %)"
            rows.append((Cell(what), Cell(format_value(before[name], unit)), Cell(said)))
    return rows


def _code_rows(last: Run, run: Run) -> list[tuple[Cell, ...]]:
    before, now = (judged.info["environment"] for judged in (last, run))
    return [
        (Cell(name), Cell(format_value(before.get(name))[:12]), Cell(format_value(now.get(name))[:12]))
        for name in CODE
        if before.get(name) != now.get(name)
    ]
