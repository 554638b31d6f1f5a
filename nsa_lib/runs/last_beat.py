"""The last sign of life of a run that has not ended: which case, step and phase, and how long ago."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from nsa_lib.contract.figures import duration
from nsa_lib.runs.recorded import MALFORMED

TAIL_BYTES = 1 << 17
"""Of a heartbeat file, far more than its longest line."""


def is_over(folder: Path) -> bool:
    """Return whether a run has come to its end: its verdict is the last that it needs to write."""
    return (folder / "summary.json").exists()


def silence(folder: Path, *, now: float | None = None) -> str:
    """Return in words what a run that has not ended was last heard to do, and how long before `now`, Unix time.

    The age is between two clocks, that of the run's host and ours; it is never below 0.
    """
    found = [(beat["ts"], path.parent, beat) for path in _heartbeats(folder) if (beat := _last(path))]
    if not found:
        return "not finished: no case of it has given a sign of life"
    at, place, beat = max(found, key=lambda one: one[0])
    name = str(place.relative_to(folder / "cases")).replace("/", ", ")
    doing = f"phase {beat['phase']}" + ("" if beat.get("step") is None else f", step {beat['step']}")
    age_s = max(0.0, (time.time() if now is None else now) - at)
    return f"not finished: last heartbeat {duration(age_s)} ago, {name}, {doing}"


def _heartbeats(folder: Path) -> list[Path]:
    return [*folder.glob("cases/*/heartbeat.jsonl"), *folder.glob("cases/*/rank*/heartbeat.jsonl")]


def _last(path: Path) -> dict | None:
    """Return the last beat of a file that is whole, or None."""
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        for line in reversed(file.read().splitlines()):
            with suppress(*MALFORMED):  # torn at either end
                beat = json.loads(line)
                return beat if isinstance(beat["ts"], int | float) and beat["phase"] else None
    return None
