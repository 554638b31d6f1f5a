"""Ranks that wait for others: seen while a case runs, told within half a minute, ended when waiting is in vain.

A step's own time says nothing of a hang in the first step, which may compile for minutes. But ranks do the same work:
the one that is in a collective shows how long the way to it takes, and a rank that compiles can be seen to.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nsa_lib.runs.flights import Wait, find_wait
from nsa_lib.runs.processes import children
from nsa_lib.runs.watch import Limits

ASK_AFTER_S = 10.0
"""Silence of a rank from which on all are asked where they are."""

ASK_EVERY_S = 5.0

TELL_AFTER_S = 20.0
"""How long a rank waits before the user is told."""


@dataclass
class Waits:
    """What the ranks of a running case say of their collectives."""

    folders: Sequence[Path]
    """Of each rank."""
    torchrun_pid: int
    asked_at: float = 0.0
    """Wall clock, as in the files of the ranks."""
    flights: dict[int, Mapping] = field(default_factory=dict)
    wait: Wait | None = None
    excused: set[int] = field(default_factory=set)
    """Ranks that compile while others wait."""

    def look(self, beats_at: Mapping[int, float]) -> None:
        """Ask the ranks if one has been silent, and read what they answered.

        Args:
            beats_at: when each rank wrote its last heartbeat, by its own clock; all must have written one.
        """
        now = time.time()
        if now - min(beats_at.values()) < ASK_AFTER_S:
            self.flights, self.wait = {}, None
            return
        if now - self.asked_at >= ASK_EVERY_S:
            self.ask()
        self.flights = {
            rank: flight for rank, flight in read_flights(self.folders).items() if flight["at"] > beats_at[rank]
        }
        known = {rank: flight["entries"] for rank, flight in self.flights.items()}
        self.wait = find_wait(known) if len(known) > 1 else None
        if self.wait:
            self.excused = {rank for rank in self.wait.late if self.flights[rank]["compiles"]}

    def ask(self) -> None:
        """Have every rank on this machine write where it is. It must have begun: before, the signal would end it."""
        self.asked_at = time.time()
        for pid in children(self.torchrun_pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)

    @property
    def waited_s(self) -> float:
        """How long the rank that waits has been in its collective, by its own clock."""
        return self.flights[self.wait.rank]["at"] - self.wait.entry["time_created_ns"] / 1e9 if self.wait else 0.0

    @property
    def notice(self) -> str:
        """What a user should know of the case while it runs, or ""."""
        late = set(range(len(self.folders))) - set(self.flights)
        if self.wait is None or self.waited_s < TELL_AFTER_S:
            mute = self.flights and late and time.time() - self.asked_at > ASK_EVERY_S / 2
            return f"{named(late)}: no answer, Python's lock is held or the process stopped" if mute else ""
        said = [self.wait.said]
        for rank in self.wait.late:
            said.append(f"rank {rank} {'compiles' if rank in self.excused else 'is'} in {self.flights[rank]['doing']}")
        return "; ".join(said)

    def overdue(
        self, limits: Limits, beats_at: Mapping[int, float], silences_s: Mapping[int, float]
    ) -> tuple[str, str] | None:
        """Return the status and reason with which the case must be ended, or None.

        The others may take `wait_factor` times as long as the rank that waits took from its last heartbeat to the
        collective. A rank that compiles is given the time of its phase.

        Args:
            limits: of the run.
            beats_at: when each rank wrote its last heartbeat, by its own clock.
            silences_s: how long ago that came, by ours. No rank has waited longer: its own clock also counts the time
                for which the machine slept, and jumps when it is set.
        """
        if self.wait is None or self.excused:
            return None
        took_s = self.wait.entry["time_created_ns"] / 1e9 - beats_at[self.wait.rank]
        allowed = limits.wait_s(took_s)
        waited_s = min(self.waited_s, silences_s[self.wait.rank])
        if waited_s <= allowed:
            return None
        who = f" for {named(self.wait.late)}" if self.wait.late else ""
        return "stalled", f"rank {self.wait.rank} has waited {waited_s:.0f} s{who} (limit {allowed:.0f} s)"


def read_flights(folders: Sequence[Path]) -> dict[int, Mapping]:
    """Return what each rank wrote of its collectives; nothing of one that wrote none, or whose torch records none."""
    found = {rank: path / "flight.json" for rank, path in enumerate(folders)}
    read = {rank: json.loads(path.read_text()) for rank, path in found.items() if path.exists()}
    return {rank: flight for rank, flight in read.items() if "reason" not in flight}


def named(ranks: Collection[int]) -> str:
    """Return ranks in words."""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(map(str, sorted(ranks)))}"
