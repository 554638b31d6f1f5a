"""Judge whether a memory figure rises over the steps of a case.

The rule: a steady rise of more than 10 %, in any 50 steps or over the whole run, is a FAIL. A window is read through
the medians of nine overlapping fifths, which are blind to spikes and to saw teeth up to a fifth long. A rise is *kept*
if the medians never fall back by more than a tenth of it. It is *steady* if it is kept and its two largest jumps from
one median to the next make up at most 80 % of it: one or two steps up are no trend, three are.

Not covered: a swing longer than 40 steps looks like a rise while it goes up; a leak under saw teeth longer than a fifth
of the run is not seen; a step within the first five steps after the warm-up passes for part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median_low

from nsa_lib.contract.case import TREND_WINDOW, WARMUP_STEPS

FAIL_GROWTH = 0.10

WARN_GROWTH = 0.02

TOLERANCE = 0.002
"""Fall of the medians, as a fraction of the first, that never counts as one."""

FALL_SHARE = 0.1
"""Fall of the medians, as a share of the rise, up to which the rise is kept."""

JUMP_SHARE = 0.8
"""Share of the rise in its two largest jumps, up to which it is steady."""


@dataclass(frozen=True)
class Trend:
    """The judgement of one trace, and the window that decided it."""

    outcome: str
    """PASS, WARN, FAIL or NOT_RUN."""
    growth: float | None
    """Rise over `window`, as a fraction of where it begins."""
    window: tuple[int, int] | None
    """First and last step."""
    slope_mib_per_step: float | None
    """Mean rise a step in `window`."""
    detail: str


@dataclass(frozen=True)
class _Reading:
    """What one window shows."""

    first_step: int
    last_step: int
    growth: float
    slope_mib_per_step: float
    kept: bool
    steady: bool
    ends_run: bool
    """A window of the trend's length that ends with the run."""

    def outcome(self) -> str:
        if self.steady and self.growth > FAIL_GROWTH:
            return "FAIL"
        rises = self.growth > WARN_GROWTH and (self.steady or (self.kept and self.ends_run))
        return "WARN" if rises or (self.kept and self.growth > FAIL_GROWTH) else "PASS"

    def detail(self) -> str:
        where = f"{self.growth:.1%} over steps {self.first_step}-{self.last_step}"
        if self.outcome() == "PASS":
            return f"stable: at most {where}"
        if self.steady:
            return f"rises steadily by {where}, {self.slope_mib_per_step:.3g} MiB a step"
        if self.growth > FAIL_GROWTH:
            return f"steps up by {where}"
        return f"rises by {where}, the end of the run: it may not have run its course"


def judge_trend(
    steps: Sequence[int],
    values_mib: Sequence[float | None],
    *,
    warmup: int = WARMUP_STEPS,
    window: int = TREND_WINDOW,
    floor_mib: float = 0.0,
) -> Trend:
    """Judge a trace of memory in MiB, one value a step, `steps` ascending.

    FAIL: a steady rise of more than 10 % in any `window` steps after the `warmup`, or over the whole run.
    WARN: a steady rise of 2-10 %, a kept step up of more than 10 %, a kept rise of more than 2 % in the last `window`
    steps. NOT_RUN: fewer than `window` steps after the warm-up, or values missing (None, not finite, not above 0) for a
    tenth of a window, unless the rest is a FAIL. A rise of up to `floor_mib` counts as none.

    Raises ValueError if `steps` do not ascend or do not match the values.
    """
    if len(steps) != len(values_mib) or any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError("steps must ascend, one for each value")
    judged = max(0, steps[-1] - warmup) if len(steps) else 0
    if judged < window:
        return _not_run(f"{judged} steps after the warm-up, needs {window}")
    levels: list[float | None] = [None] * judged
    for step, value in zip(steps, values_mib):
        if step > warmup and value is not None and math.isfinite(value) and value > 0:
            levels[step - warmup - 1] = value

    readings = list(_readings(levels, warmup + 1, window, floor_mib))
    worst = max(filter(None, readings), key=_severity, default=None)
    if None in readings and (worst is None or worst.outcome() != "FAIL"):
        return _not_run("values are missing: a tenth of a window has none")
    return Trend(
        outcome=worst.outcome(),
        growth=worst.growth,
        window=(worst.first_step, worst.last_step),
        slope_mib_per_step=worst.slope_mib_per_step,
        detail=worst.detail(),
    )


def steps_to_limit(value_mib: float, slope_mib_per_step: float, limit_mib: float) -> float | None:
    """Return the steps until `value_mib` reaches the limit at a constant slope: 0 if it has, None if it never will."""
    if value_mib >= limit_mib:
        return 0.0
    return (limit_mib - value_mib) / slope_mib_per_step if slope_mib_per_step > 0 else None


def _not_run(detail: str) -> Trend:
    return Trend(outcome="NOT_RUN", growth=None, window=None, slope_mib_per_step=None, detail=detail)


def _severity(reading: _Reading) -> tuple[int, float]:
    return ("PASS", "WARN", "FAIL").index(reading.outcome()), reading.growth


def _readings(levels: list[float | None], first_step: int, window: int, floor_mib: float) -> Iterator[_Reading | None]:
    """Read every window, and the whole run as one; None for those with a gap."""
    final = len(levels) - window
    for start in range(final + 1):
        yield _read(levels[start : start + window], first_step + start, floor_mib, ends_run=start == final)
    if final:
        yield _read(levels, first_step, floor_mib, ends_run=False)


def _read(levels: list[float | None], first_step: int, floor_mib: float, *, ends_run: bool) -> _Reading | None:
    length = len(levels)
    bounds = [length * i // 10 for i in range(11)]
    tenths = [[level for level in levels[start:end] if level is not None] for start, end in pairwise(bounds)]
    if not all(tenths):
        return None
    # The lower median, so that a step falls between two medians and never halfway into one.
    fifths = [median_low(left + right) for left, right in pairwise(tenths)]
    base, rise = fifths[0], fifths[-1] - fifths[0]
    jumps = [later - earlier for earlier, later in pairwise(fifths)]
    # Carried on from the centres of the outer fifths to the ends of the window. That overstates stairs: so no more than
    # the values themselves spread.
    spread = max(map(max, tenths)) - min(map(min, tenths))
    growth = min(jumps[0] + rise + jumps[-1], spread) / median_low(tenths[0]) if rise > floor_mib else 0.0
    fall = max(peak - level for peak, level in zip(accumulate(fifths, max), fifths))
    kept = growth > 0 and fall <= max(TOLERANCE * base, FALL_SHARE * rise)
    return _Reading(
        first_step=first_step,
        last_step=first_step + length - 1,
        growth=max(0.0, growth),
        slope_mib_per_step=rise / (length * 4 / 5),
        kept=kept,
        steady=kept and sum(sorted(jumps)[-2:]) <= JUMP_SHARE * rise,
        ends_run=ends_run,
    )
