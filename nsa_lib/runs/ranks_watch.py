"""What is seen of all ranks of a case that runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nsa_lib.runs.waits import Waits
from nsa_lib.runs.watch import Limits, Watch


@dataclass(frozen=True)
class RanksWatch:
    """What has been seen of all ranks of a case; where one figure is wanted, that of the slowest."""

    ranks: Sequence[Watch]
    waits: Waits

    def look(self) -> None:
        """Read the beats that came from every rank, and, once all have begun, who waits for whom."""
        for watch in self.ranks:
            watch.look()
        if all(watch.beat_ts for watch in self.ranks):
            self.waits.look(self._beats_at)

    @property
    def _beats_at(self) -> dict[int, float]:
        return {rank: watch.beat_ts for rank, watch in enumerate(self.ranks)}

    @property
    def notice(self) -> str:
        """Which ranks wait for which, once they have for a while."""
        return self.waits.notice

    def overdue(self, limits: Limits) -> tuple[str, str] | None:
        """Return the status and reason with which the case must be ended, or None; it names the ranks that are late."""
        late = {rank: ending for rank, watch in enumerate(self.ranks) if (ending := watch.overdue(limits))}
        if not late:
            silences_s = {rank: watch.silence_s for rank, watch in enumerate(self.ranks)}
            return self.waits.overdue(limits, self._beats_at, silences_s)
        status, reason = next(iter(late.values()))
        return status, f"{reason}: {'rank' if len(late) == 1 else 'ranks'} {', '.join(map(str, late))}"

    @property
    def slowest(self) -> Watch:
        """The rank that has done the fewest steps."""
        return min(self.ranks, key=lambda watch: len(watch.steps_s))

    @property
    def began(self) -> float:
        """When the case began."""
        return self.ranks[0].began

    @property
    def phase(self) -> str:
        """Phase of the slowest rank."""
        return self.slowest.phase

    @property
    def steps_s(self) -> list[float]:
        """Times of the steps of the slowest rank."""
        return self.slowest.steps_s

    @property
    def memory_mib(self) -> list[float]:
        """Peak allocated memory of each step of the slowest rank."""
        return self.slowest.memory_mib

    @property
    def reserved_mib(self) -> float | None:
        """Highest peak of reserved memory of the slowest rank."""
        return self.slowest.reserved_mib

    @property
    def loss(self) -> float | None:
        """Loss of the last step of the slowest rank, over its own sequences."""
        return self.slowest.loss
