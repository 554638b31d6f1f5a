"""Heartbeats: one JSON line for each sign of life of a case, appended by the worker's loop and read by the runner.

A beat comes from the loop itself, after the device was synchronized, and never from a thread: a thread goes on beating
through a hang.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

STEP_COLUMNS = (
    "case_id", "rank", "step", "phase", "ts", "loss", "grad_norm", "step_ms", "tokens_per_s", "alloc_mib",
    "reserved_mib", "active_mib", "peak_alloc_mib", "peak_reserved_mib", "peak_alloc_forward_mib",
    "peak_alloc_backward_mib", "peak_alloc_optimizer_mib", "peak_reserved_forward_mib", "peak_reserved_backward_mib",
    "peak_reserved_optimizer_mib", "forward_ms", "backward_ms", "alloc_retries", "ooms", "device_allocs", "ops",
    "subject", "branches", "backend", "seq_len", "routes", "own_ms", "data", "part_norms", "collective", "size_mib",
    "bus_gb_per_s",
)  # fmt: skip


SCHEMA = 3
"""Of what a run leaves. It rises when gates need what older runs did not record: those can no longer be judged."""

PHASES = ("start", "build", "warmup", "step", "judge")
"""Phases of a case, in order. `start` is the time before the first beat; in `judge` nothing is measured any more."""


def rank_folder(case_folder: Path, rank: int) -> Path:
    """Return where a rank of a case of several leaves its heartbeats, result and log."""
    return case_folder / f"rank{rank}"


class Heartbeat:
    """The heartbeat file of one case, open for appending."""

    def __init__(self, path: Path):
        self.folder = path.parent
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def beat(self, phase: str, step: int | None = None, **figures: object) -> None:
        """Append one line. It reaches the file in one write, so that a reader never sees a mixture of two.

        Raises OSError if not all of it could be written, ValueError for a step without its `step_ms`: who watches the
        case tells a slow step from a hang by it.
        """
        if step is not None and "step_ms" not in figures:
            raise ValueError(f"step {step}: its heartbeat lacks step_ms")
        line = {"schema": SCHEMA, "ts": time.time(), "step": step, "phase": phase, **figures}
        text = (json.dumps(line) + "\n").encode()
        written = os.write(self._descriptor, text)
        if written < len(text):  # the next line would be glued to this one
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {written} of {len(text)} bytes of a heartbeat")

    def close(self) -> None:
        """Close the file; every line is already in it."""
        os.close(self._descriptor)


class HeartbeatReader:
    """Reads a heartbeat file as it grows, whole lines only."""

    def __init__(self, path: Path):
        self.path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[dict]:
        """Return the beats that came since the last call; a line still being written waits for the next one.

        Raises ValueError if a whole line is not JSON.
        """
        return list(self.beats())

    def beats(self) -> Iterator[dict]:
        """Yield what `read` returns, one at a time: a long run has too many to hold them all."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for part in file:
                self._offset += len(part)
                self._rest += part
                if self._rest.endswith(b"\n"):
                    line, self._rest = self._rest, b""
                    yield json.loads(line)

    @property
    def torn(self) -> bool:
        """Whether the file ends in the middle of a line, as it does when its writer was killed."""
        return bool(self._rest)
