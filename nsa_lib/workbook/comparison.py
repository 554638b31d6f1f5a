"""The page on which two runs are compared: what differs, their figures, their memory and step times overlaid."""

from __future__ import annotations

import re

import pandas as pd

from nsa_lib.contract.figures import counted, signed_percent
from nsa_lib.report.charts.overlay import overlay
from nsa_lib.report.page import Section, page
from nsa_lib.report.table import Cell, Table
from nsa_lib.report.tables import format_value, frame_table, verdict_cell
from nsa_lib.workbook.run import FIGURES, Run, compare, key_figures

OVERLAYS = (
    ("peak_alloc_mib", "Peak allocated memory", "MiB"),
    ("peak_reserved_mib", "Peak reserved memory", "MiB"),
    ("step_ms", "Step time", "ms"),
)

NO_SECOND = "no second run"
"""Column of differences where there is nothing to compare with."""

HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b")
"""A git commit or a sha256: two of them beside each other are wider than a page, and 12 digits tell them apart."""


def comparison_page(run_a: Run, run_b: Run) -> str:
    """Return the page that compares two runs, of one notebook or of two."""
    charts = [overlay(run_a, run_b, *named) for named in OVERLAYS]
    sections = [
        Section("Runs", tables=[_runs_table(run_a, run_b)]),
        Section("Figures", tables=[figures_table(run_a, run_b)], charts=charts),
        Section("What differs", tables=[_differences_table(run_a, run_b)]),
    ]
    return page(f"{run_a.info['run_id']} against {run_b.info['run_id']}", sections)


def figures_table(run_a: Run, run_b: Run) -> Table:
    """Tabulate the key figures of two runs and by how much the second differs."""
    figures_a, figures_b = key_figures(run_a), key_figures(run_b)
    rows = [
        (
            Cell(what),
            Cell(format_value(figures_a[name], unit), numeric=True),
            Cell(format_value(figures_b[name], unit), numeric=True),
            Cell(_change(figures_a[name], figures_b[name]), numeric=True),
        )
        for name, (what, unit) in FIGURES.items()
    ]
    return Table("Figures", ("figure", "A", "B", "B against A"), rows)


def _change(before: float | None, after: float | None) -> str:
    return signed_percent(100 * (after / before - 1)) if before and after is not None else format_value(None)


def _runs_table(run_a: Run, run_b: Run) -> Table:
    rows = [
        (
            Cell(letter),
            verdict_cell(run.verdict),
            Cell(str(run.info["run_id"])),
            Cell(str(run.info["profile"])),
            Cell("; ".join(map(str, run.info["custom"])) or format_value(None)),
            Cell(": ".join(filter(None, (run.summary["on_trial"], run.summary["headline"])))),
        )
        for letter, run in (("A", run_a), ("B", run_b))
    ]
    return Table("Runs", ("", "verdict", "run", "profile", "custom", "headline"), rows)


def _differences_table(run_a: Run, run_b: Run) -> Table:
    changed = _with_short_hashes(compare(run_a, run_b))
    rows = [[Cell(format_value(value)) for value in row] for row in changed.itertuples(index=False)]
    nothing = [Cell("nothing differs"), Cell(""), Cell(""), Cell("")]
    return Table(
        "Parameters, environment, gates and figures that differ", ("kind", "name", "A", "B"), rows or [nothing]
    )


def differences_table(changed: pd.DataFrame) -> Table:
    """Tabulate what differs between two runs (`run.compare`)."""
    caption = counted(len(changed), "difference") if len(changed) else "Nothing differs"
    if NO_SECOND in changed:
        caption = 'No second run to compare with; name one with the parameter "other"'
    return frame_table(caption, _with_short_hashes(changed), {name: name for name in changed})


def _with_short_hashes(changed: pd.DataFrame) -> pd.DataFrame:
    return changed.map(lambda value: HASH.sub(r"\1…", value) if isinstance(value, str) else value)
