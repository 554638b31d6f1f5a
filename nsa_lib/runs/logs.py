"""What the processes of a case wrote to stderr, and what it tells of one that died without a result."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.source import OTHER_SOURCE
from nsa_lib.runs import ranks

STDERR_TAIL = 4000
"""Characters of a worker's stderr that its result keeps."""


def last_line(path: Path) -> str:
    """Return the last line of a log, or ""."""
    return (_tail(path).strip().splitlines() or [""])[-1]


def stderr_tail(case: CaseConfig, folder: Path) -> str:
    """Return the end of what a case wrote to stderr; of several processes each in turn, under its name."""
    if not case.is_launched:
        return _tail(folder / "stderr.log")
    logs = {name: path for name, path in ranks.logs(case, folder).items() if path.exists()}
    return "\n".join(f"--- {name}\n{_tail(path)}" for name, path in logs.items())


def _tail(path: Path) -> str:
    """Return the last characters of a file, which may be of any size."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4 * STDERR_TAIL))
        return file.read().decode(errors="replace")[-STDERR_TAIL:]


def diagnose(exit_code: int | None, stderr: str, killed_for_memory: bool) -> tuple[str, str]:
    """Return the status and reason of a case that died without a result of its own."""
    last_line = (stderr.strip().splitlines() or [""])[-1]
    if exit_code is None:
        return "crashed", "could not be killed"
    if exit_code == -signal.SIGKILL and killed_for_memory:
        return "oom", "killed by the kernel for lack of memory"
    if exit_code < 0:
        return "crashed", f"killed by {signal.Signals(-exit_code).name}"
    if exit_code == OTHER_SOURCE:
        return "interrupted", last_line
    if exit_code == 0:
        return "failed", "ended without a result"
    return "failed", last_line or f"exit status {exit_code}"
