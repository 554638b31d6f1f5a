"""The whole checklist in one go: its notebooks in order, each through papermill, and one verdict over their runs.

A notebook that does not end in GO stops nothing: the others run all the same, and readiness says what it all means.
Readiness decides over the runs made here and no others, so that an older run cannot stand in for one that failed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import nbformat

from nsa_lib.contract.lines import say
from nsa_lib.report.verdict import Verdict, read_verdict
from nsa_lib.runs import papermill
from nsa_lib.runs.environment import notebook_path, out_dir_of, require_room
from nsa_lib.runs.folder import new_output, written
from nsa_lib.runs.parameters import read_value, unknown
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.decide import REQUEST
from nsa_lib.workbook.questions import QUESTIONS, counted

VALIDATE_ORDER = (*counted(), REQUEST.notebook)
"""The notebooks in the order in which a validation runs them; the last decides over the others' runs."""

STOPPED = 130
"""Exit status of a shell's command that Ctrl-C ended."""


@dataclass(frozen=True)
class Ended:
    """How one notebook of a validation ended."""

    notebook: str
    verdict: Verdict
    report: Path
    seconds: float
    status: int
    """Exit status of papermill."""

    def __str__(self) -> str:
        said = f"{self.verdict.icon} {self.verdict.word:<10}  {self.notebook:<16}  {self.verdict.headline}"
        where = self.report if self.report.exists() else "no report"
        return f"{said}  {where}  ({self.seconds:.0f} s)"


def validate(in_files: Mapping[str, object], on_line: Mapping[str, str], *, reports: Path) -> int:
    """Run the notebooks in order, then readiness over their runs; print a line for each and the verdict.

    Ctrl-C, or SIGTERM, interrupts the notebook that runs, which is saved with its report, and starts no other.

    Args:
        in_files: parameters read from files; each goes to the notebooks that declare it.
        on_line: parameters given as text, which overrule those.
        reports: where executed notebooks and reports go.

    Returns:
        0 if readiness is GO, or REVIEW where `accept_review` says so; else another exit status.

    Raises:
        ConfigError: before anything is started, for a parameter that no notebook declares, a value not accepted, or a
            folder that cannot be written.
    """
    given = {**in_files, **on_line}
    check_parameters(given)
    require_room(reports)
    began = datetime.now(timezone.utc)
    run_ids: list[str] = []
    with StopButton() as stop:
        for place, notebook in enumerate(VALIDATE_ORDER):
            own = {**on_line, "runs": ",".join(run_ids)} if notebook == VALIDATE_ORDER[-1] else on_line
            output = new_output(reports, notebook, began)
            ended, stopped = _run_notebook(papermill_command(notebook, output, in_files, own), notebook, output, stop)
            say(str(ended))
            run_ids += [ended.verdict.run_id] if ended.verdict.run_id else []
            if stopped and notebook != VALIDATE_ORDER[-1]:
                say(f"stopped; not started: {', '.join(VALIDATE_ORDER[place + 1 :])}")
                return STOPPED
    _print_verdict(ended, out_dir_of(given.get("out_dir")))
    return ended.status if ended.verdict.word in ("GO", "REVIEW") else ended.status or 1


def check_parameters(given: Mapping[str, object]) -> None:
    """Raise ConfigError, naming it, for a parameter that no notebook declares or a value that one does not accept."""
    if "runs" in given:
        raise ConfigError("runs: a validation decides over the runs that it makes; to choose them, run readiness alone")
    for name, value in given.items():
        declaring = [notebook for notebook in VALIDATE_ORDER if name in QUESTIONS[notebook].request.parameters]
        if not declaring:
            declared = dict.fromkeys(name for each in VALIDATE_ORDER for name in QUESTIONS[each].request.parameters)
            raise ConfigError(unknown(name, f"parameter of {', '.join(VALIDATE_ORDER)}", declared))
        for notebook in declaring:
            read_value(QUESTIONS[notebook].request.parameters, name, value)


def papermill_command(
    notebook: str, output: Path, in_files: Mapping[str, object], on_line: Mapping[str, str]
) -> list[str]:
    """Return the command that executes a notebook, given those parameters that it declares."""
    declared = QUESTIONS[notebook].request.parameters
    options = ["--engine", "nsa", "--no-progress-bar"]
    from_files = {name: value for name, value in in_files.items() if name in declared}
    if from_files:
        options += ["-y", json.dumps(from_files)]  # JSON is YAML
    options += papermill.parameters({name: value for name, value in on_line.items() if name in declared})
    return papermill.command(notebook_path(notebook), output, *options)


def _run_notebook(command: list[str], notebook: str, output: Path, stop: StopButton) -> tuple[Ended, bool]:
    """Execute a notebook; return how it ended and whether Ctrl-C was pressed meanwhile."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        status, stopped = papermill.supervise(command, stop, log=log, tell=_ticker(notebook))
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()
    if written(output):
        verdict = read_verdict(nbformat.read(output, as_version=4))
    else:
        verdict = Verdict("INCOMPLETE", f"papermill left no notebook: {said[-1] if said else f'exit status {status}'}")
    seconds = time.monotonic() - began
    return Ended(notebook, verdict, output.with_suffix(".html"), seconds, status), stopped


def _ticker(notebook: str) -> Callable[[], None]:
    """Return what tells on stderr that a notebook runs: once, or on a terminal with the seconds, in one line."""
    began, shown, terminal = time.monotonic(), -1, sys.stderr.isatty()

    def tell() -> None:
        nonlocal shown
        seconds = int(time.monotonic() - began)
        if seconds == shown or (shown >= 0 and not terminal):
            return
        shown = seconds
        # Back to the start of the line and rub it out: the line that says how it ended takes its place.
        said = f"{notebook} runs, {seconds} s\r" if terminal else f"{notebook} runs\n"
        print(f"\033[K{said}" if terminal else said, end="", file=sys.stderr, flush=True)

    return tell


def _print_verdict(ended: Ended, out_dir: Path) -> None:
    verdict = ended.verdict
    say("", f"{verdict.icon} {verdict.word}: {verdict.headline}")
    say(*(f"  - {reason}" for reason in verdict.reasons), *verdict.notes)
    if verdict.run_id:
        say(f"for review: {out_dir / 'runs' / verdict.run_id / 'review.zip'}")
    say(f"report: {ended.report}", f"all runs: {out_dir / 'index.html'}")
