"""Judge whether a memory figure rises over the steps of a case.

The rule: memory that rises steadily by more than 10 %, in any 50 steps or over any longer window up to the whole run,
is a FAIL (`trend_windows` reads the windows). A rise is *kept* if memory never falls back by more than half of it. It
is *steady* if it is kept and a fifth of it is left without its two largest steps: one or two steps up are no trend,
three are.

Noise is estimated from the trace, and a limit leaves room for it. A FAIL is more than 10 %, more than noise makes of a
flat trace in any window of 1 run in 1,000, and more than noise makes of a rise of 8 %.

What that promises, for noise that is independent from step to step, is counted in
reports/examples/trend_error_rates.md. Under noise of 0.3 % of the level, a steady rise of 12 % over 50 steps or more
fails; under 1 % about 1 in 100 is a WARN instead, more where teeth lie over it or it takes less than 50 steps. Under
5 % no rule can promise it: the best straight line through 50 steps has an error of 2.4 %, so 12 % lie 4.9 errors above
nothing; to miss it in 1 of 100 runs and to mistake noise for it in 1 of 1,000 takes 5.4, where but one window is looked
at, and more to tell it from 10 % or from two steps. There, what fails is 32 % over 100 steps, 22 % over 200, 16 % over
1,000 and 12 % over 5,000; less is a WARN or, over short windows, nothing. Two steps up fail in 1 of 30 runs there, and
teeth without a rise are a WARN in up to a quarter of long runs.

A net rise of more than 10 % over the run is a WARN at least, whatever its path; but memory that came back to where it
began, and more than once, swings: where it is at the last step means nothing.

Not covered: a swing that rises for more than 40 steps looks like a rise while it goes up; a leak under teeth longer
than a fifth of the run, and higher than what it gains, may be taken for a swing; a step up within the first five steps
after the warm-up, or the last two, passes for part of it; noise that drifts is a rise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from nsa_lib.contract.case import TREND_WINDOW, WARMUP_STEPS
from nsa_lib.contract.figures import counted
from nsa_lib.judgement.trend_windows import (
    MEDIAN_ERROR,
    PARTS,
    Chunked,
    Windows,
    medians,
    noise_of,
    read_windows,
    running_sum,
)

FAIL_GROWTH = 0.10
WARN_GROWTH = 0.02
FALSE_FAILS, FALSE_WARNS = 0.0005, 0.005
"""Share of flat, noisy runs that may FAIL, and WARN: half of the goal, since the noise itself is an estimate."""
SURE_GROWTH, SURE_ERRORS = 0.08, 3.5
"""A FAIL lies this many standard errors above this growth: a rise of 8 % is none."""
OVER_READING = 10 / 9
"""What the growth of a rise shorter than its window is read as, at most. The shortest window holds none that counts."""
RETURN_SHARE = 0.25
"""Part of a net rise, at its top and its bottom, that memory goes between in a swing."""
RETURNS = 2
"""Times that memory must have come back, for a swing."""


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


def judge_trend(steps: Sequence[int], values_mib: Sequence[float | None], *, floor_mib: float = 0.0) -> Trend:
    """Judge a trace of memory in MiB, one value a step, `steps` ascending.

    FAIL: a steady rise of more than 10 % in any 50 steps after the warm-up, or in any longer window. WARN: a steady
    rise of 2-10 %, a kept step up of more than 10 %, a kept rise of more than 2 % in the last 50 steps, a net rise over
    the run of more than 10 % whatever its path. NOT_RUN: fewer than 50 steps after the warm-up, or a value missing
    (None, not finite, not above 0, its step not there), unless the steps around it are a FAIL; or `steps` that do not
    ascend. A rise of up to `floor_mib` counts as none.

    Raises ValueError if there is not a value for each step.
    """
    if (np.diff(np.asarray(steps, dtype=int)) <= 0).any():
        return _not_run("the steps do not ascend: one was recorded twice, or they are not in order")
    levels = _levels(steps, values_mib)
    if len(levels) < TREND_WINDOW:
        return _not_run(f"{counted(len(levels), 'step')} after the warm-up, needs {TREND_WINDOW}")
    missing = np.isnan(levels)
    if missing.all():
        return _not_run("values are missing: there is none")
    levels = np.interp(np.arange(len(levels)), np.flatnonzero(~missing), levels[~missing])
    noise = noise_of(levels)
    windows = list(read_windows(levels, noise))
    findings = [
        *_rises(windows, missing, floor_mib),
        *_higher_lows(levels, floor_mib),
        *_higher_end(levels, noise, floor_mib),
    ]
    worst = max(findings, key=_severity, default=_stable(windows[-1]))
    if missing.any() and worst.outcome != "FAIL":
        return _not_run(f"values are missing: {missing.sum():,} of {len(levels):,} steps have none")
    return worst


def steps_to_limit(value_mib: float, slope_mib_per_step: float, limit_mib: float) -> float | None:
    """Return the steps until `value_mib` reaches the limit at a constant slope: 0 if it has, None if it never will."""
    if value_mib >= limit_mib:
        return 0.0
    return (limit_mib - value_mib) / slope_mib_per_step if slope_mib_per_step > 0 else None


def _not_run(detail: str) -> Trend:
    return Trend(outcome="NOT_RUN", growth=None, window=None, slope_mib_per_step=None, detail=detail)


def _severity(found: Trend) -> tuple[bool, float, float]:
    """Order by outcome and growth; of windows that show the same rise, the one that fits it closest."""
    return found.outcome == "FAIL", round(found.growth, 2), found.slope_mib_per_step


def _levels(steps: Sequence[int], values_mib: Sequence[float | None]) -> np.ndarray:
    """Return the value of each step after the warm-up; NaN where there is none."""
    at, values = np.asarray(steps, dtype=int), np.asarray(values_mib, dtype=float)
    if len(at) != len(values):
        raise ValueError(f"{len(values)} values for {len(at)} steps")
    levels = np.full(max(0, at[-1] - WARMUP_STEPS) if len(at) else 0, np.nan)
    good = (at > WARMUP_STEPS) & np.isfinite(values) & (values > 0)
    levels[at[good] - WARMUP_STEPS - 1] = values[good]
    return levels


# Findings


def _rises(windows: list[Windows], missing: np.ndarray, floor_mib: float) -> Iterator[Trend]:
    """Yield the largest rise of each length and kind that is beyond its limit."""
    # Windows that overlap show much the same noise: as many can err apart as lie side by side.
    apart = sum(len(missing) / read.steps for read in windows)
    certain, likely = (NormalDist().inv_cdf(1 - share / apart) for share in (FALSE_FAILS, FALSE_WARNS))
    gaps = running_sum(missing)
    for read in windows:
        whole = gaps[read.start + read.steps] == gaps[read.start]
        counts = whole & (read.rise * read.base_mib > floor_mib)
        shortest = read.steps == TREND_WINDOW
        sure = SURE_GROWTH * (1 if shortest else OVER_READING) + SURE_ERRORS * read.error
        noise, flat = (sigmas * read.error + read.alias for sigmas in (likely, certain))
        fails = read.growth > np.maximum.reduce([sure, flat, np.full_like(sure, FAIL_GROWTH)])
        warns = read.growth > np.maximum(noise, WARN_GROWTH)
        steps_up = np.minimum(read.growth, read.rise)
        yield from _largest(read, read.growth, counts & read.surely_steady & fails, "FAIL", "rises steadily by")
        yield from _largest(read, read.growth, counts & read.steady & warns, "WARN", "rises steadily by")
        found = counts & read.kept & (steps_up > np.maximum(noise, FAIL_GROWTH))
        yield from _largest(read, steps_up, found, "WARN", "steps up by")
        if shortest:
            found = counts & read.kept & (steps_up > np.maximum(noise, WARN_GROWTH))
            found[:-1] = False
            words = "has not run its course, it rises at the end of the run by"
            yield from _largest(read, steps_up, found, "WARN", words)


def _largest(read: Windows, growth: np.ndarray, found: np.ndarray, outcome: str, words: str) -> Iterator[Trend]:
    if found.any():
        i = np.flatnonzero(found)[growth[found].argmax()]
        yield _trend(outcome, words, growth[i], read.start[i], read.steps, read.base_mib[i], read.error[i])


def _stable(read: Windows) -> Trend:
    """Say of the longest window that nothing was found in it or any other."""
    growth = max(read.growth[-1], 0.0) if read.kept[-1] else 0.0
    return _trend("PASS", "stable:", growth, read.start[-1], read.steps, read.base_mib[-1], read.error[-1])


def _trend(outcome: str, words: str, growth: float, start: int, steps: int, base_mib: float, error: float) -> Trend:
    first, last = WARMUP_STEPS + 1 + int(start), WARMUP_STEPS + int(start) + steps
    slope = float(growth * base_mib / steps)
    noise = f" (noise {error:.1%})" if error >= 0.001 else ""
    rate = "" if outcome == "PASS" else f", {slope:.3g} MiB a step"
    return Trend(
        outcome, float(growth), (first, last), slope, f"{words} {growth:.1%}{noise} over steps {first}-{last}{rate}"
    )


def _higher_lows(levels: np.ndarray, floor_mib: float) -> Iterator[Trend]:
    """Yield the rise of the lowest level from the run's beginning to its end, which teeth do not hide."""
    steps = min(TREND_WINDOW, max(TREND_WINDOW // 2, len(levels) // 3))
    first, last = (medians(part, 2 * TREND_WINDOW // PARTS).min() for part in (levels[:steps], levels[-steps:]))
    if last - first > max(floor_mib, FAIL_GROWTH * first):
        yield _trend("WARN", "ends at lows that are higher by", (last - first) / first, 0, len(levels), first, 0.0)


def _higher_end(levels: np.ndarray, noise: Chunked, floor_mib: float) -> Iterator[Trend]:
    """Yield the rise from the first level to the last, unless memory swings between the two."""
    course = medians(levels, TREND_WINDOW // PARTS)
    first, net = course[0], course[-1] - course[0]
    error = MEDIAN_ERROR * np.hypot(noise.mib[0], noise.mib[-1])
    if net <= max(floor_mib, FAIL_GROWTH * first, NormalDist().inv_cdf(1 - FALSE_WARNS) * error):
        return
    high, low = course >= first + (1 - RETURN_SHARE) * net, course <= first + RETURN_SHARE * net
    ends = high[high | low]
    if np.count_nonzero(ends[:-1] & ~ends[1:]) < RETURNS:
        yield _trend("WARN", "ends higher by", net / first, 0, len(levels), first, error / first)
