"""Read the windows of a trace: how much each rises, how it came about, and how far noise can mislead it.

Windows are 50, 100, 200, ... steps long and begin at every 50th of their length; the whole run is one as well. Each is
read twice. Means of its parts, without spikes, say how much it rises. Medians of nine overlapping fifths are blind to
spikes, and to teeth shorter than a fifth: they say how the rise came about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from nsa_lib.contract.case import TREND_WINDOW

FALL_SHARE = 0.5
"""Fall of the medians, as a share of the rise, up to which the rise is kept."""
REST_SHARE = 0.2
"""Share of the growth that a steady rise keeps without its two largest steps."""
SPILL = 2
"""Part of two steps, in standard deviations of the noise, that medians can show beside their jumps."""
REST_ERRORS = 1
"""Standard errors by which noise can add to what means show beside two steps."""

PARTS = 10
"""Parts of a window; two make one of its fifths."""
CHUNK_STEPS = 100
"""Steps that share one estimate of noise and swing, at least."""
LONGEST_TOOTH = 10
"""Steps up to which a repeating pattern is no noise."""
CLIP = 4
"""Standard deviations from the median of five steps beyond which a value is a spike."""
ALIAS_SHARE = 1 / 8
"""Part of their height by which teeth a little longer than a window's part seem to rise: they drift through it."""
GROWTH_ERROR = 4.7
"""Standard error of the growth of a window of n steps, times sqrt(n) / noise. Measured on Gaussian noise."""
MEDIAN_ERROR = 0.54
"""Standard error of the median of five values, / noise."""


@dataclass(frozen=True)
class Chunked:
    """A figure of a trace in MiB, one value for each `steps` steps."""

    steps: int
    mib: np.ndarray

    def at(self, step: np.ndarray) -> np.ndarray:
        return self.mib[self._chunk(step)]

    def over(self, start: np.ndarray, steps: int) -> np.ndarray:
        """Return the root mean square over `steps` steps from each start."""
        total = running_sum(self.mib**2)
        first, end = self._chunk(start), self._chunk(start + steps - 1) + 1
        return np.sqrt((total[end] - total[first]) / (end - first))

    def _chunk(self, step: np.ndarray) -> np.ndarray:
        return np.minimum(step // self.steps, len(self.mib) - 1)


@dataclass(frozen=True)
class Windows:
    """What all windows of one length show: an entry a window, fractions of where it begins."""

    steps: int
    start: np.ndarray
    """Steps of the trace before the window."""
    base_mib: np.ndarray
    growth: np.ndarray
    """From end to end, by means."""
    rise: np.ndarray
    """From the first fifth to the last, by medians."""
    fall: np.ndarray
    """The deepest fall of the medians."""
    rest: np.ndarray
    """The rise without its two largest jumps, by medians."""
    sure_rest: np.ndarray
    """What of that noise cannot feign."""
    error: np.ndarray
    """Standard error of the growth."""
    alias: np.ndarray
    """The growth that teeth without a rise can show."""

    @property
    def kept(self) -> np.ndarray:
        return (self.rise > 0) & (self.fall <= FALL_SHARE * self.rise)

    @property
    def steady(self) -> np.ndarray:
        return self.kept & (self.rest >= REST_SHARE * self.growth)

    @property
    def surely_steady(self) -> np.ndarray:
        return self.kept & (self.sure_rest >= REST_SHARE * self.growth)


def running_sum(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(values)])


def medians(levels: np.ndarray, width: int, stride: int = 1) -> np.ndarray:
    """Return the lower median of each `width` steps: a step falls between two of them and never halfway into one."""
    middle = (width - 1) // 2
    return np.partition(sliding_window_view(levels, width)[::stride], middle, axis=1)[:, middle]


def noise_of(levels: np.ndarray) -> Chunked:
    """Estimate the standard deviation of the noise from differences of values 1 to 10 steps apart.

    Teeth cancel at their own length, and three quarters of the differences hold neither spikes nor the falls of teeth.
    """
    rows = _chunks(levels)
    spreads = [_spread_at(rows, lag) for lag in range(1, LONGEST_TOOTH + 1)]
    # A Gaussian difference is within 1.15 sqrt(2) noise in three of four; the least of ten lags is 0.87 of the mean.
    return Chunked(rows.shape[1], np.minimum.reduce(spreads) / (1.15 * np.sqrt(2) * 0.87))


def _spread_at(rows: np.ndarray, lag: int) -> np.ndarray:
    """Return of each row how far three quarters of its differences at a lag lie from their median."""
    changes = rows[:, LONGEST_TOOTH:] - rows[:, LONGEST_TOOTH - lag : -lag]
    return np.quantile(np.abs(changes - np.median(changes, axis=1, keepdims=True)), 0.75, axis=1)


def _swing_of(levels: np.ndarray, noise: Chunked) -> Chunked:
    """Return how far nine tenths of the values spread beyond their noise: the height of teeth, if there are some."""
    low, high = np.quantile(_chunks(levels), (0.05, 0.95), axis=1)
    return Chunked(noise.steps, np.maximum(high - low - 3.3 * noise.mib, 0))


def _chunks(levels: np.ndarray) -> np.ndarray:
    count = max(1, len(levels) // CHUNK_STEPS)
    return levels[: len(levels) // count * count].reshape(count, -1)


def read_windows(levels: np.ndarray, noise: Chunked) -> Iterator[Windows]:
    """Read the windows of every length, the whole run last."""
    around = medians(np.pad(levels, 2, mode="edge"), 5)
    margin = CLIP * noise.at(np.arange(len(levels)))
    total = running_sum(np.clip(levels, around - margin, around + margin) - levels[0])
    swing = _swing_of(levels, noise)
    part, longest = TREND_WINDOW // PARTS, len(levels) // PARTS
    while part < longest:
        yield _read(levels, total, noise, swing, part)
        part *= 2
    yield _read(levels, total, noise, swing, longest)


def _read(levels: np.ndarray, total: np.ndarray, noise: Chunked, swing: Chunked, part: int) -> Windows:
    """Read all windows of ten parts; `total` is the running sum of the levels without spikes, less the first level."""
    steps, stride = PARTS * part, part // 5 if part % 5 == 0 else part
    # Counted from the end, so that the last window ends with the run.
    start = np.arange((len(levels) - steps) % stride, len(levels) - steps + 1, stride)
    noise_mib = noise.over(start, steps)
    error_mib = GROWTH_ERROR * noise_mib / np.sqrt(steps)
    base_mib, growth_mib, rest_of_means = _by_means(total, start, part, levels[0])
    rise, fall, rest = _by_medians(levels, start, part, stride)
    return Windows(
        steps=steps,
        start=start,
        base_mib=base_mib,
        growth=growth_mib / base_mib,
        rise=rise / base_mib,
        fall=fall / base_mib,
        rest=rest / base_mib,
        sure_rest=np.maximum(rest - SPILL * noise_mib, rest_of_means - REST_ERRORS * error_mib) / base_mib,
        error=error_mib / base_mib,
        alias=ALIAS_SHARE * swing.over(start, steps) / base_mib,
    )


def _by_means(total: np.ndarray, start: np.ndarray, part: int, first_mib: float) -> tuple[np.ndarray, ...]:
    """Return of each window, by the means of its parts: where it begins, its growth, the rise without two steps."""

    def mean(parts_before: int, parts: int) -> np.ndarray:
        begin = start + parts_before * part
        return (total[begin + parts * part] - total[begin]) / (parts * part) + first_mib

    tenths, fifths = [mean(before, 1) for before in range(PARTS)], [mean(before, 2) for before in (0, 2, 6, 8)]
    # Centres of the outer parts are nine parts apart, and those of the outer fifths eight.
    by_tenths = (tenths[-1] - tenths[0]) * PARTS / (PARTS - 1)
    by_fifths = fifths[3] - fifths[0] + (fifths[1] - fifths[0] + fifths[3] - fifths[2]) / 2
    return tenths[0], np.minimum(by_tenths, by_fifths), _without_two_steps(tenths)


def _by_medians(levels: np.ndarray, start: np.ndarray, part: int, stride: int) -> tuple[np.ndarray, ...]:
    """Return of each window, by the medians of two parts: its rise, its deepest fall, the rise without two jumps."""
    middles = medians(levels[start[0] :], 2 * part, stride)
    course = [middles[i * part // stride :][: len(start)] for i in range(PARTS - 1)]
    # A part at a time: all parts of all windows of a long run are a hundred megabytes.
    highest, fall = course[0], np.zeros(len(start))
    largest = second = np.full(len(start), -np.inf)
    for before, after in pairwise(course):
        highest = np.maximum(highest, after)
        fall = np.maximum(fall, highest - after)
        jump = after - before
        largest, second = np.maximum(largest, jump), np.maximum(second, np.minimum(largest, jump))
    rise = course[-1] - course[0]
    return rise, fall, rise - largest - second


def _without_two_steps(means: list[np.ndarray]) -> np.ndarray:
    """Return the rise over some means without the two steps that explain most of it; a step shows in two jumps."""
    steps = [after - before for before, after in zip(means[:-2], means[2:], strict=True)]
    first, two = steps[0], steps[0] + steps[2]
    for earlier, later in zip(steps[1:-2], steps[3:], strict=True):
        first = np.maximum(first, earlier)
        two = np.maximum(two, first + later)
    return means[-1] - means[0] - two
