"""Which runs of a fleet are of its newest start; a start of the same name may have left others before.

A member that leaves nothing this time, or only half of a run, must not be judged by what it left then. By names, not by
times: the clocks of hosts differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from nsa_lib.contract.files import write_json

FILE = "start.json"

SCHEMA = 1


def all_runs(folder: Path) -> list[Path]:
    """Return every run folder in the folder of a fleet."""
    return sorted(path.parent for path in (folder / "runs").glob("*/run.json"))


def note_start(folder: Path, earlier: Iterable[Path]) -> None:
    """Note that members have been started, and which runs were there before."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, {"schema": SCHEMA, "earlier": [path.name for path in earlier]})


def runs_of_start(folder: Path) -> list[Path]:
    """Return the run folders of the newest start; all, where a scheduler of the user's own starts the members."""
    path = folder / FILE
    earlier = set(json.loads(path.read_text())["earlier"]) if path.exists() else set()
    return [run for run in all_runs(folder) if run.name not in earlier]
