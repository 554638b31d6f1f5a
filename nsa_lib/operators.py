"""Compare how often each operator is called early and late in a case.

In steady state the counts repeat exactly, which times do not: a count that rises is work that piles up, such as a hook
registered every step. Not covered: operators whose number stays while their shapes grow; the memory trend shows those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nsa_lib.config import WARMUP_STEPS

WINDOW_STEPS = 1
"""Steps in each of the two windows that a case counts; one is enough, since counts repeat exactly."""

FEWEST_STEPS = WARMUP_STEPS + WINDOW_STEPS + 1 + WINDOW_STEPS
"""Steps that hold both windows, and one before the late one in which the profiler warms up."""

SHARE = 0.05
CALLS_PER_STEP = 3
TOTAL_SHARE = 0.01


@dataclass(frozen=True)
class Growth:
    """How operator counts changed from an early window of steps to a late one."""

    total_growth: float
    """Rise of all calls together, as a fraction."""
    grown: tuple[str, ...]
    """Operators that are called more than 5 % and at least 3 calls a step more often, the largest rise first."""
    worst: str | None
    """The first of `grown`."""
    worst_early: float | None
    """Its calls a step, early."""
    worst_late: float | None
    """Its calls a step, late."""

    @property
    def has_grown(self) -> bool:
        """Whether any operator has grown, or all together by more than 1 %."""
        return bool(self.grown) or self.total_growth > TOTAL_SHARE


def operator_growth(early: Mapping[str, int], late: Mapping[str, int], *, steps: int = 1) -> Growth:
    """Compare the calls of each operator in two windows of `steps` steps each.

    Raises ValueError if the early window holds no calls.
    """
    total = sum(early.values())
    if total <= 0:
        raise ValueError("the early window holds no operator calls")
    rises = {name: count - early.get(name, 0) for name, count in late.items()}
    grown = [
        name for name, rise in rises.items() if rise >= CALLS_PER_STEP * steps and rise > SHARE * early.get(name, 0)
    ]
    grown.sort(key=lambda name: (-rises[name], name))
    worst = grown[0] if grown else None
    return Growth(
        total_growth=sum(late.values()) / total - 1,
        grown=tuple(grown),
        worst=worst,
        worst_early=None if worst is None else early.get(worst, 0) / steps,
        worst_late=None if worst is None else late[worst] / steps,
    )
