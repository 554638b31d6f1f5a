"""Run the trials of `fault_table`: every seeded fault through papermill and the notebook that must catch it.

A trial counts as caught if its run ends with the verdict and the exit status expected, and the gate expected is the
reason. Everything that a trial leaves is kept, so that a fault that was missed can be looked at.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import nbformat

from nsa_lib.config import ConfigError
from nsa_lib.environment import PROJECT, provenance
from nsa_lib.fault_table import FAULTS, TRIALS, Trial
from nsa_lib.gates import FAIL, NOT_RUN
from nsa_lib.report import read_verdict
from nsa_lib.runner import write_json, write_text
from nsa_lib.store import Run, open_run

SCHEMA = 1
AT_ONCE = 2
"""Trials that run side by side; a case is one thread."""
LIMIT_S = 300
"""A trial takes seconds. One that takes this long was not caught."""

RED = {"NO-GO": FAIL, "INCOMPLETE": NOT_RUN}
"""The outcome of the gate that is the reason for a verdict."""

COLUMNS = ("fault", "notebook", "expected", "got", "gate", "seconds", "caught", "because")
"""Of the printed table; the one in Markdown also says what was planted."""


@dataclass(frozen=True)
class Finding:
    """What became of one trial."""

    fault: str
    planted: str
    """What the fault is, with its size."""
    notebook: str
    expected: str
    """The verdict that it must come to."""
    got: str
    """The verdict that it came to."""
    gate: str
    """The gate that must be the reason."""
    seconds: float
    """From the start of papermill to the verdict."""
    caught: bool
    because: str
    """What that gate said, or what was found in its place."""
    parameters: dict[str, object]


def selftest(reports: Path = PROJECT / "reports", trials: Sequence[Trial] = TRIALS) -> int:
    """Run the trials, print each as it ends, write the table as JSON and Markdown, and return the exit status."""
    created = datetime.now(timezone.utc)
    folder = reports / f"selftest-{created.strftime('%Y%m%dT%H%M%SZ')}"
    folder.mkdir(parents=True)
    findings = {}
    print(_row(COLUMNS), flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(attempt, trial, folder): trial for trial in trials}
        for ended in as_completed(running):
            findings[running[ended].name] = ended.result()
            print(_row(_cells(ended.result(), COLUMNS)), flush=True)
    in_order = [findings[trial.name] for trial in trials]
    table = folder.with_suffix(".json")
    write_json(
        table,
        {
            "schema": SCHEMA,
            "created": created.isoformat(),
            "seconds": round((datetime.now(timezone.utc) - created).total_seconds(), 1),
            "environment": provenance(),
            "findings": [asdict(finding) for finding in in_order],
        },
    )
    write_text(folder.with_suffix(".md"), markdown(in_order))
    missed = [finding.fault for finding in in_order if not finding.caught]
    print(f"{len(in_order) - len(missed)} of {len(in_order)} as expected; {table}")
    return 1 if missed else 0


def attempt(trial: Trial, folder: Path) -> Finding:
    """Run one trial through papermill and compare its verdict and gates with what is expected."""
    own = folder / trial.name
    own.mkdir()
    began = time.monotonic()
    status = run_notebook(trial, own)
    seconds = time.monotonic() - began
    got, caught, because = judge(trial, own, status)
    return Finding(
        fault=trial.fault,
        planted=FAULTS[trial.fault],
        notebook=trial.notebook,
        expected=trial.verdict,
        got=got,
        gate=trial.gate,
        seconds=round(seconds, 1),
        caught=caught,
        because=because,
        parameters=dict(trial.parameters),
    )


def run_notebook(trial: Trial, folder: Path) -> int | None:
    """Execute the trial's notebook as a user would; return papermill's exit status, or None if it took too long."""
    command = [sys.executable, "-m", "papermill", str(PROJECT / "notebooks" / f"{trial.notebook}.ipynb")]
    command.append(str(folder / "out.ipynb"))
    for name, value in {**trial.parameters, "fault": trial.fault, "out_dir": folder}.items():
        command += ["-r", name, str(value)]
    with (folder / "papermill.log").open("wb") as log:
        try:
            return subprocess.run(command, stdout=log, stderr=log, timeout=LIMIT_S, check=False).returncode
        except subprocess.TimeoutExpired:  # papermill is killed; the kernel and the case end with it
            return None


def judge(trial: Trial, folder: Path, status: int | None) -> tuple[str, bool, str]:
    """Return a trial's verdict, whether it is the one expected for the reason expected, and that reason."""
    if status is None:
        return "nothing", False, f"no end within {LIMIT_S} s"
    try:
        run = open_run("newest", out_dir=folder)
        got = read_verdict(nbformat.read(folder / "out.ipynb", as_version=4)).word
    except (FileNotFoundError, ConfigError) as error:
        return "nothing", False, str(error)
    as_expected = got == trial.verdict and (status == 0) == (got == "GO")
    if trial.verdict == "GO":
        return got, as_expected, "; ".join(run.summary["reasons"])
    gate = next((gate for gate in run.gates if gate.name == trial.gate), None)
    if gate is None:
        return got, False, f"no gate {trial.gate}"
    is_reason = gate.required and gate.outcome == RED[trial.verdict] and trial.says in gate.detail
    if as_expected and is_reason and _is_labelled(run, trial):
        return got, True, gate.detail or f"{gate.measured} instead of {gate.limit}"
    return got, False, f"{gate.outcome}: {gate.detail}; {'; '.join(run.summary['reasons'])}"


def _is_labelled(run: Run, trial: Trial) -> bool:
    """Whether the run says what was planted in it, so that readiness does not count it."""
    return any(said.startswith(f"fault={trial.fault}:") for said in run.info["custom"])


def _cells(finding: Finding, columns: Sequence[str]) -> tuple[str, ...]:
    figures = {**asdict(finding), "caught": "yes" if finding.caught else "NO", "seconds": f"{finding.seconds:.1f}"}
    return tuple(str(figures[name]) for name in columns)


def _row(cells: Sequence[str]) -> str:
    """Return a line of the printed table."""
    widths = (17, 17, 11, 11, 17, 8, 7)
    padded = [cell.ljust(width) for cell, width in zip(cells, widths)]
    return " ".join([*padded, cells[-1][:110]])


def markdown(findings: Sequence[Finding]) -> str:
    """Return the table in Markdown."""
    columns = (COLUMNS[0], "planted", *COLUMNS[1:])
    rows = [columns, ["---"] * len(columns), *(_cells(finding, columns) for finding in findings)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
