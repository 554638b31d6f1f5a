"""Run a notebook from a shell: papermill with the engine that also writes the HTML, and a name for its output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from nsa_lib.runs import papermill
from nsa_lib.runs.environment import notebook_path, require_room
from nsa_lib.runs.folder import new_output, written
from nsa_lib.runs.stop_button import StopButton


def run_notebook(
    notebook: str, reports: Path, options: Sequence[str], *, quiet: bool, limit_s: float = math.inf
) -> tuple[int, Path, bool]:
    """Run a notebook to its end, and return papermill's exit status, its output, and whether that was written.

    Args:
        notebook: its name.
        reports: the folder of its output, of its report beside it, and of runs/.
        options: of papermill, besides the engine.
        quiet: what it prints goes to a log beside the output, and to this process's own output otherwise.
        limit_s: after which papermill is killed.

    Raises:
        ConfigError: in one line, if that folder cannot be written.
    """
    require_room(reports)
    output = new_output(reports, notebook, datetime.now(timezone.utc))
    shown = "--no-progress-bar" if quiet else "--log-output"
    command = papermill.command(notebook_path(notebook), output, "--engine", "nsa", shown, *options)
    with StopButton() as stop, ExitStack() as files:
        log = files.enter_context(output.with_suffix(".log").open("wb")) if quiet else None
        status, _ = papermill.supervise(command, stop, log=log, limit_s=limit_s)
    return status, output, written(output)
