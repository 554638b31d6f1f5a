"""Compare how often each operator is called early and late in a case.

In steady state the counts repeat exactly, which times do not: a count that rises is work that piles up, such as a hook
registered every step. Not covered: operators whose number stays while their shapes grow; the memory trend shows those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from nsa_lib.contract.case import WARMUP_STEPS, WINDOW_STEPS
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, GateResult, ended_well, how_it_ended, outcome_of

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


def growth_gate(name: str, case: Mapping[str, object] | None, steps: pd.DataFrame) -> GateResult:
    """Judge that no operator of a case is called more often late than right after warm-up.

    Args:
        name: of the gate.
        case: as `Recorded.case` returns it.
        steps: its heartbeats. Where they tell how many operators a step called, the windows must tell the same.
    """
    gate = GateResult(name, True, NOT_RUN, limit=0, unit="operators")
    if case is not None and not ended_well(case):
        return replace(gate, outcome=outcome_of(case), detail=how_it_ended(case))
    windows = None if case is None else case["operators"]
    if not windows:
        return replace(gate, detail="no two windows of steps were counted")
    early, late = ({op: row["count"] for op, row in windows[when].items()} for when in ("early", "late"))
    if why := _miscounted(case["meter"]) or _contradiction({"early": early, "late": late}, steps):
        return replace(gate, detail=why)
    growth = operator_growth(early, late, steps=WINDOW_STEPS)
    calls, later = (f"{sum(counts.values()):,}" for counts in (early, late))
    detail = f"{calls} calls in an early step, {later} in a late one, of operators and of what they launch"
    if growth.grown:
        detail += f"; grew: {', '.join(growth.grown)}"
    outcome = FAIL if growth.has_grown else PASS
    return replace(gate, outcome=outcome, measured=len(growth.grown), detail=detail)


def _miscounted(meter: Mapping[str, object] | None) -> str:
    """Return how many calls whose number was known the meter of a case did not count so, or ""."""
    calls = (meter or {}).get("calls")  # a profiler counts where no meter does
    if calls is None or meter["counted"] == calls:
        return ""
    return f"of {calls:,} calls whose number was known {meter['counted']:,} were counted"


def _contradiction(windows: Mapping[str, Mapping[str, int]], steps: pd.DataFrame) -> str:
    """Return why the windows were not counted in the steps that they are of, by the heartbeats of those; or ""."""
    told = steps["ops"].astype(float)
    if told.isna().all():  # a profiler counts where no meter does
        return ""
    early = steps["step"].between(WARMUP_STEPS + 1, WARMUP_STEPS + WINDOW_STEPS)
    own = {"early": told[early], "late": told.iloc[-WINDOW_STEPS:]}
    wrong = [
        f"{when} {sum(windows[when].values()):,} calls, in the heartbeats {calls.sum():,.0f}"
        for when, calls in own.items()
        if sum(windows[when].values()) != calls.sum()
    ]
    return "; ".join(wrong)
