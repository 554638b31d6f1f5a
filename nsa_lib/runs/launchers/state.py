"""The live state of a fleet, from its run folders alone: members pending, running, and what they came to."""

from __future__ import annotations

import time
from collections import Counter
from html import escape
from pathlib import Path

from IPython import get_ipython
from IPython.display import DisplayHandle, display

from nsa_lib.contract.lines import folded
from nsa_lib.runs.last_beat import silence
from nsa_lib.runs.launchers.start import runs_of_start
from nsa_lib.runs.recorded import MALFORMED, read_info, read_summary

PERIOD_S = 2.0

PRINT_PERIOD_S = 20.0

NAMED = 8
"""Runs that are named: those that did not come to GO, and the last ones that run, with their last sign of life."""


class FleetState:
    """What the members of a fleet have come to so far. A verdict is what the member said itself; it is judged later."""

    def __init__(self, folder: Path, members: int | None):
        """Begin to look at the folder of a fleet of so many members; None if nobody says how many."""
        self._folder, self._members = folder, members
        self._ended: dict[str, str] = {}
        self._verdicts: dict[str, str] = {}
        self._running: list[Path] = []
        self._told: dict[str, tuple[str, tuple[object, ...]]] = {}
        self._handle: DisplayHandle | None = None
        self._shown_at = self._printed_at = 0.0
        self._printed = ""

    def counts(self) -> Counter:
        """Return how many members are in each state: pending, running, or a verdict."""
        runs = self._newest()
        for path in runs:
            if path.name not in self._ended and (verdict := _verdict(path)):
                self._ended[path.name] = verdict
        self._verdicts = {path.name: self._ended[path.name] for path in runs if path.name in self._ended}
        self._running = [path for path in runs if path.name not in self._ended]
        pending = max(0, (self._members or 0) - len(runs))
        return Counter(self._verdicts.values()) + Counter({"pending": pending, "running": len(self._running)})

    def _newest(self) -> list[Path]:
        """Return the newest run of each member: a scheduler may have started one again."""
        newest: dict[tuple[object, ...], tuple[str, Path]] = {}
        for path in runs_of_start(self._folder):
            if path.name not in self._told and (told := _told(path)) is not None:
                self._told[path.name] = told
            created, key = self._told.get(path.name, ("", (path.name,)))
            newest[key] = max(newest.get(key, ("", path)), (created, path))
        return [path for _, path in newest.values()]

    def show(self, scheduler: str = "", *, at_once: bool = False) -> None:
        """Show the state, and print it when it has changed; throttled, unless `at_once`.

        `scheduler` is what the scheduler says of the job.
        """
        now = time.monotonic()
        if now - self._shown_at < PERIOD_S and not at_once:
            return
        self._shown_at = now
        words = ", ".join(f"{count} {state}" for state, count in self.counts().items() if count)
        words = f"{scheduler.lower()}: {words}" if scheduler else words
        words = words or "no member is there"
        if words != self._printed and (at_once or now - self._printed_at >= PRINT_PERIOD_S):
            self._printed_at, self._printed = now, words
            print(folded(words), flush=True)
        if get_ipython() is not None:
            self._update(words)

    def _update(self, words: str) -> None:
        named = [f"{verdict} {run}" for run, verdict in self._verdicts.items() if verdict != "GO"]
        # Of many that run none is waited for yet.
        named += [f"{path.name}: {silence(path)}" for path in self._running] if len(self._running) <= NAMED else []
        more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
        lines = "".join(f"<br>{escape(line)}" for line in named[:NAMED] + more)
        bundle = {"text/html": f"<div>{escape(words)}{lines}</div>", "text/plain": words}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _told(folder: Path) -> tuple[str, tuple[object, ...]] | None:
    """Return when a run began and which member it is of; None while that cannot be read whole."""
    try:
        info = read_info(folder)
        return str(info["created"]), tuple(info["member"][name] for name in ("host", "gpu_uuid", "rank"))
    except MALFORMED:
        return None


def _verdict(folder: Path) -> str:
    """Return what a member's run says that it came to; "" while it runs, or while the file cannot be read whole."""
    try:
        return str(read_summary(folder)["verdict"])
    except MALFORMED:
        return ""
