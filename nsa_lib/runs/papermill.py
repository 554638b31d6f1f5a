"""papermill's command line, and papermill as a child of this process: `python -m nsa_lib.runs.papermill PID ...`.

That it is a module of ours and not papermill's own is for its life: it ends with the process that started it.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from nsa_lib.contract.process import die_with_parent
from nsa_lib.runs.stop_button import StopButton

POLL_S = 0.1

VERDICT_ERROR = "VerdictError"
"""The error with which a notebook ends whose verdict is not GO (`report.verdict`)."""

KILLED_S = 10.0
"""How long a killed process may take to be gone."""


def command(notebook: Path | str, output: Path | str, *options: str) -> list[str]:
    """Return the command that executes a notebook, and ends with this process."""
    return [sys.executable, "-m", __name__, str(os.getpid()), str(notebook), str(output), *options]


def parameters(given: Mapping[str, object]) -> list[str]:
    """Return parameters as options. Texts and lists go as they are (-r): -p reads a tag such as 007 as a number."""
    options = []
    for name, value in given.items():
        is_typed = isinstance(value, bool | int | float)
        text = str(list(value)) if isinstance(value, tuple) else str(value)
        options += ["-p" if is_typed else "-r", name, text]
    return options


def supervise(
    started: list[str],
    stop: StopButton,
    *,
    log=None,
    tell: Callable[[], None] = lambda: None,
    limit_s: float = math.inf,
) -> tuple[int, bool]:
    """Run papermill to its end and return its exit status and whether the user stopped it.

    In a session of its own it hears Ctrl-C from here alone, once for each press, and has the time to save the notebook.

    Args:
        started: its command.
        stop: hears the user.
        log: a file for what it prints, or None for this process's own output.
        tell: is called again and again while it runs.
        limit_s: after which it is killed, and its status is that of SIGKILL.
    """
    stopped, deadline = False, time.monotonic() + limit_s
    process = subprocess.Popen(started, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        tell()
        while process.poll() is None:
            if time.monotonic() >= deadline:
                return _killed(process), stopped
            if stop.pressed:
                stop.pressed, stopped = False, True
                process.send_signal(signal.SIGINT)
            time.sleep(POLL_S)
            tell()
    finally:  # if the supervision itself fails: the notebook must not outlive it
        if process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode, stopped or stop.pressed


def _killed(process: subprocess.Popen) -> int:
    """Kill a process, and do not wait for one that waits for a disk or a driver for ever."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(KILLED_S)
    process.returncode = -signal.SIGKILL  # also of one that is still there: nobody waits for it any more
    return process.returncode


def main(parent_pid: int, arguments: list[str]) -> None:
    """Run papermill's own command line, and end with the parent."""
    die_with_parent(parent_pid)
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the working folder, which `papermill` itself does not look into either
    from papermill.cli import papermill  # only now: its import takes a second, in which the parent may die
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill(arguments, prog_name="papermill")
    except PapermillExecutionError as error:
        # The stack of papermill's own functions helps nobody; a verdict is told by whoever started this.
        sys.exit(1 if error.ename == VERDICT_ERROR else str(error).strip())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
