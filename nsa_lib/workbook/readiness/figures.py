"""The tables of readiness: the runs that count, those left out, and every gate; and the page that goes to review."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nsa_lib.judgement.gate import PASS
from nsa_lib.report.page import Section, page
from nsa_lib.report.table import OUTCOME, Cell, Table
from nsa_lib.report.tables import format_value, gate_row, gates_table, linked, ranked, verdict_cell
from nsa_lib.workbook.readiness.gates import to_run


def runs_table(run) -> Table:
    """Tabulate the runs that a readiness run counts, with links to their reports."""
    folder = _page_folder(run)
    rows = [
        (
            verdict_cell(source["verdict"]),
            linked(source["notebook"], source["report"], folder),
            Cell(source["headline"]),
            Cell(format_value(source["machine"])),
            Cell(source["run_id"]),
        )
        for source in run.info["sources"]
    ]
    return Table("Runs that count, with their reports", ("verdict", "notebook", "headline", "machine", "run"), rows)


def left_out_table(run) -> Table:
    """Tabulate the runs that a readiness run does not count, with the reason."""
    rows = [(Cell(one["run_id"]), Cell(one["notebook"]), Cell(one["reason"])) for one in run.info["left_out"]]
    return Table(f"Runs left out{'' if rows else ': none'}", ("run", "notebook", "reason"), rows)


def to_run_table(run) -> Table:
    """Tabulate what must be run, or run again, before the runs can be GO together, with the command."""
    rows = [tuple(map(Cell, row)) for row in to_run(run)]
    return Table(f"To be run{'' if rows else ': nothing'}", ("notebook", "why", "command"), rows)


def readiness_table(run) -> Table:
    """Tabulate every gate of every run that a readiness run counts, with links to their reports.

    Those that passed are folded: each stands in the report of its run too, and they are a hundred.
    """
    folder, shown, passed = _page_folder(run), [], []
    for source in run.info["sources"]:
        for gate in ranked(source["gates"]):
            notebook = linked(source["notebook"], source["report"], folder)
            row = (notebook, *gate_row(gate)[:4], Cell(gate["detail"]))
            (passed if gate["outcome"] == PASS else shown).append(row)
    header = ("notebook", OUTCOME, "gate", "measured", "limit", "detail")
    return Table("Gates", header, shown, folded=passed, folded_because="passed")


def packed_page(run, reports: Mapping[Path, str]) -> str:
    """Return the page of a readiness run for its archive: verdict, runs with links into reports/, and every gate."""
    root, summary = Path("/"), run.summary
    sources = [
        {**source, "report": source["report"] and str(root / "reports" / reports[Path(source["report"])])}
        for source in run.info["sources"]
    ]
    packed = replace(run, info={**run.info, "sources": sources, "report": str(root / "readiness.html")})
    said = [f"{summary['verdict']}: {summary['headline']}", *summary["reasons"], *summary["advice"]]
    sections = [
        Section("Verdict", said, [gates_table(summary["gates"])]),
        Section("Runs", tables=[runs_table(packed), left_out_table(packed), to_run_table(packed)]),
        Section("Every gate of every run", tables=[readiness_table(packed)]),
    ]
    return page(f"{summary['verdict']}: {run.info['run_id']}", sections)


def _page_folder(run) -> Path:
    """Return the folder of a run's report; where that is not known, the folder that holds runs/."""
    report = run.info["report"]
    return Path(report).parent if report else run.out_dir
