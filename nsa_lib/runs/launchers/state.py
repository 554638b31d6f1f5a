"""The live state of a fleet, from its run folders alone: members pending, running, and what they came to."""

from __future__ import annotations

import time
from collections import Counter
from html import escape
from pathlib import Path

from IPython import get_ipython
from IPython.display import DisplayHandle, display

from nsa_lib.runs.recorded import MALFORMED, read_summary

PERIOD_S = 2.0

PRINT_PERIOD_S = 20.0

NAMED = 8
"""Runs that did not come to GO and are named."""


class FleetState:
    """What the members of a fleet have come to so far. A verdict is what the member said itself; it is judged later."""

    def __init__(self, folder: Path, members: int | None):
        """Begin to look at the folder of a fleet of so many members; None if nobody says how many."""
        self._folder, self._members = folder, members
        self._ended: dict[str, str] = {}
        self._handle: DisplayHandle | None = None
        self._shown_at = self._printed_at = 0.0
        self._printed = ""

    def counts(self) -> Counter:
        """Return how many members are in each state: pending, running, or a verdict."""
        runs = [path for path in (self._folder / "runs").glob("*") if (path / "run.json").exists()]
        for path in runs:
            if path.name not in self._ended and (verdict := _verdict(path)):
                self._ended[path.name] = verdict
        pending = max(0, (self._members or 0) - len(runs))
        running = len(runs) - len(self._ended)
        return Counter(self._ended.values()) + Counter({"pending": pending, "running": running})

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
            print(words, flush=True)
        if get_ipython() is not None:
            self._update(words)

    def _update(self, words: str) -> None:
        named = [f"{verdict} {run}" for run, verdict in self._ended.items() if verdict != "GO"]
        more = [f"and {len(named) - NAMED} more"] if len(named) > NAMED else []
        lines = "".join(f"<br>{escape(line)}" for line in named[:NAMED] + more)
        bundle = {"text/html": f"<div>{escape(words)}{lines}</div>", "text/plain": words}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _verdict(folder: Path) -> str:
    """Return what a member's run says that it came to; "" while it runs, or while the file cannot be read whole."""
    try:
        return str(read_summary(folder)["verdict"])
    except MALFORMED:
        return ""
