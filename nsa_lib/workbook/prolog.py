"""A smoke for a scheduler's prolog: an exit status that tells what to do with the node, and one line of JSON on stdout.

`python -m nsa_lib run smoke -p profile prolog`. Everything else that it prints goes to a log beside its report.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nbformat

from nsa_lib.judgement.gate import FAIL
from nsa_lib.report.verdict import Verdict, read_verdict
from nsa_lib.runs import environment, papermill
from nsa_lib.runs.member import fleet_folder
from nsa_lib.runs.parameters import refuse_unknown
from nsa_lib.runs.recorded import read_summary
from nsa_lib.runs.watch import TOOK_ALL
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.execution import run_notebook
from nsa_lib.workbook.profiles import PROLOG
from nsa_lib.workbook.questions import QUESTIONS

STATUSES = {
    "GO": (0, "healthy"),
    "INCOMPLETE": (2, "could not run"),
    "NO-GO": (3, "defective"),
    "REVIEW": (4, "doubtful"),
}
"""Exit status and word of each verdict. 1 is Python's own, for a bug of ours."""

ENDS_S = 180.0
"""How long a run may take besides its cases: to start, to be judged, to write its report."""


def prolog(notebook: str, given: Mapping[str, object]) -> int:
    """Run a notebook, print one line of JSON, and return the exit status of STATUSES.

    A run that came to no end in its time says nothing of the GPU: it could not run.

    Args:
        notebook: its name.
        given: its parameters.
    """
    began = time.monotonic()
    try:
        refuse_unknown(notebook, QUESTIONS[notebook].request.parameters, given)
        verdict, report = _run(notebook, given)
        if verdict.word == "NO-GO" and _failed_for_time_alone(_folder(verdict, given)):
            verdict = replace(verdict, word="INCOMPLETE", headline=f"its time was too short: {verdict.headline}")
    except (ConfigError, OSError) as error:
        verdict, report = Verdict("INCOMPLETE", str(error)), None
    status, word = STATUSES[verdict.word]
    told = {
        "status": word,
        "exit_status": status,
        "verdict": verdict.word,
        "headline": verdict.headline,
        "reasons": list(verdict.reasons),
        **_place(verdict, given),
        "report": report and str(report),
        "seconds": round(time.monotonic() - began, 1),
    }
    _say(json.dumps(told))
    return status


def _say(line: str) -> None:
    """Print a line. A scheduler that reads no output goes by the exit status, which must not become Python's own."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails once more


def _run(notebook: str, given: Mapping[str, object]) -> tuple[Verdict, Path]:
    reports = environment.out_dir_of(given.get("out_dir"))
    options, limit_s = papermill.parameters(given), _time_s(notebook, given) + ENDS_S
    began = time.monotonic()
    exit_status, output, is_written = run_notebook(notebook, reports, options, quiet=True, limit_s=limit_s)
    log = output.with_suffix(".log")
    if time.monotonic() - began >= limit_s and exit_status == -signal.SIGKILL:
        return Verdict("INCOMPLETE", f"it came to no end within {limit_s:g} s and was killed"), log
    if not is_written:
        said = log.read_text(errors="replace").strip().splitlines()
        why = said[-1] if said else f"exit status {exit_status}"
        return Verdict("INCOMPLETE", f"papermill left no notebook: {why}"), log
    return read_verdict(nbformat.read(output, as_version=4)), output.with_suffix(".html")


def _time_s(notebook: str, given: Mapping[str, object]) -> float:
    """Return the seconds that a run's cases may take together."""
    request = QUESTIONS[notebook].request
    return float(request.resolve(request.read(given), profile=PROLOG)["total_timeout_s"].value)


def _failed_for_time_alone(folder: Path) -> bool:
    """Return whether all required gates that fail do so because the run had taken all of its time."""
    gates = read_summary(folder)["gates"] if (folder / "summary.json").exists() else []
    failed = [gate for gate in gates if gate["required"] and gate["outcome"] == FAIL]
    return bool(failed) and all(TOOK_ALL in gate["detail"] for gate in failed)


def _folder(verdict: Verdict, given: Mapping[str, object]) -> Path:
    """Return the folder of a run."""
    out_dir = environment.out_dir_of(given.get("out_dir"))
    if given.get("fleet"):
        out_dir = fleet_folder(out_dir, str(given["fleet"]))
    return out_dir / "runs" / verdict.run_id


def _place(verdict: Verdict, given: Mapping[str, object]) -> dict[str, object]:
    """Return on which host and GPU a run was, and its folder; None where it did not get so far."""
    folder = _folder(verdict, given)
    path = folder / "run.json"
    facts = json.loads(path.read_text())["environment"] if verdict.run_id and path.exists() else {}
    named = {name: facts.get(name) for name in ("host", "gpu", "gpu_uuid")}
    return {**named, "run": str(folder) if facts else None}
