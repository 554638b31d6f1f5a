"""How long a case may be silent, and what has been seen of a case that runs.

Slow is not hung: a step may take any time that is in proportion to the steps before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from nsa_lib.contract.heartbeat import HeartbeatReader

TOOK_ALL = "the run has taken all of its total_timeout_s"
"""How the reason begins why a case was ended, or not begun, for the user's limit alone."""


@dataclass(frozen=True)
class Limits:
    """How long a case may be silent in each phase, in seconds."""

    start_s: float = 180.0
    """From spawn to the first beat: the import of torch, maybe from a network disk."""
    build_s: float = 300.0
    warmup_s: float = 900.0
    """The first step: kernels are loaded, compiled and tuned."""
    step_floor_s: float = 30.0
    step_factor: float = 10.0
    """Later steps: this many times the median of those measured, and never less than the floor."""
    judge_s: float = 300.0
    """What a case does after its steps says nothing of them, nor they of it."""
    wait_floor_s: float = 45.0
    wait_factor: float = 3.0
    """A rank in a collective waits for the others this many times as long as it took to get there, or the floor."""
    total_s: float = 24 * 3600.0
    """For a case that goes on beating, where the user sets no limit to the whole run."""
    given_s: float | None = None
    """The user's `stall_timeout_s`, which replaces the limits on building and on steps."""
    run_s: float | None = None
    """The user's `total_timeout_s`, for all cases of the run together."""
    spent_s: float = 0.0
    """What the cases before this one took of it."""

    def silence_s(self, phase: str, alike_s: list[float]) -> float:
        """Return how long the case may be silent after a beat of a phase.

        `alike_s` are the steps measured so far that did the same work as the next one; others say nothing of it.
        """
        if phase in ("start", "judge"):
            return self.start_s if phase == "start" else self.judge_s
        if self.given_s is not None:
            return self.given_s
        if phase == "build":
            return self.build_s
        return max(self.step_floor_s, self.step_factor * median(alike_s)) if alike_s else self.warmup_s

    def wait_s(self, took_s: float) -> float:
        """Return how long a rank may be in a collective that it took so long to get to."""
        return max(self.wait_floor_s, self.wait_factor * took_s) if self.given_s is None else self.given_s

    def overtime(self, case_s: float) -> str:
        """Return why a case that has run for so long must end, or ""."""
        if self.run_s is None:
            return f"still beating after {case_s:.0f} s (limit {self.total_s:.0f} s)" if case_s > self.total_s else ""
        over = self.spent_s + case_s >= self.run_s
        return f"{TOOK_ALL}={self.run_s:g}" if over else ""


ABSENT_S = 2.0
"""A gap between two looks from which on the watcher itself was absent: its container was paused, its machine slept."""


def _step_s(beat: Mapping, before_ts: float | None) -> float:
    """Return how long a step took; where its heartbeat tells no finite time, the time since the one before.

    The judge finds that. Here a limit made of NaN would never end a hang.
    """
    told_s = beat["step_ms"] / 1000
    return told_s if math.isfinite(told_s) else max(0.0, beat["ts"] - (before_ts or beat["ts"]))


@dataclass
class Watch:
    """What has been seen of a running case."""

    reader: HeartbeatReader
    kinds: Sequence[Hashable]
    """What work each step does, in order; steps of one kind take about the same time."""
    began: float = field(default_factory=time.monotonic)
    phase: str = "start"
    beat_at: float = field(default_factory=time.monotonic)
    looked_at: float = field(default_factory=time.monotonic)
    steps_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    reserved_mib: float | None = None
    """Highest peak of reserved memory."""
    loss: float | None = None
    """Of the last step that had one."""
    beat_ts: float | None = None
    """When the last beat was written, by the clock of who wrote it."""

    def look(self) -> None:
        """Read the beats that came. Time in which nobody watched is not silence of the case."""
        now = time.monotonic()
        if (absent_s := now - self.looked_at) > ABSENT_S:
            self.beat_at, self.began = self.beat_at + absent_s, self.began + absent_s
        self.looked_at = now
        for beat in self.reader.read():
            before_ts = self.beat_ts
            self.phase, self.beat_at, self.beat_ts = beat["phase"], now, beat["ts"]
            if beat["step"] is not None:
                self.steps_s.append(_step_s(beat, before_ts))
                if "peak_alloc_mib" in beat:  # a timing measures no memory
                    self.memory_mib.append(beat["peak_alloc_mib"])
                if beat.get("peak_reserved_mib") is not None:
                    self.reserved_mib = max(self.reserved_mib or 0.0, beat["peak_reserved_mib"])
                self.loss = beat.get("loss", self.loss)

    def overdue(self, limits: Limits) -> tuple[str, str] | None:
        """Return the status and reason with which the case must be ended, or None."""
        now = time.monotonic()
        silence, allowed = self.silence_s, limits.silence_s(self.phase, self._alike_s())
        if silence > allowed:
            where = f"in phase {self.phase} after step {len(self.steps_s)}"
            return "stalled", f"no heartbeat for {silence:.0f} s {where} (limit {allowed:.0f} s)"
        overtime = limits.overtime(now - self.began)
        return ("timeout", overtime) if overtime else None

    notice = ""
    """What a user should know while the case runs; one process waits for nobody."""

    @property
    def silence_s(self) -> float:
        """How long ago the last beat came."""
        return time.monotonic() - self.beat_at

    def _alike_s(self) -> list[float]:
        """Return the times of the steps that did the work of the next one; of all steps once none is left."""
        done = len(self.steps_s)
        if done >= len(self.kinds):
            return self.steps_s
        return [s for s, kind in zip(self.steps_s, self.kinds, strict=False) if kind == self.kinds[done]]
