"""How slow a member may be: a band that is learned from the fleet itself, never a fixed share.

Median and median absolute deviation are those of the healthy as long as they are more than half. What is allowed
above the median is FACTOR times the deviation, and more in a small fleet, whose own deviation is less certain. By
simulation a healthy member of a fleet of 5 to 1,000 lies above it in less than 1 of 1,000 cases, where the times are
normal or have the heavy tails of Student's distribution with 5 degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

FEWEST = 5
"""Members from which on a spread can be learned."""

FACTOR = 7.0

UNCERTAIN = 4.2
"""A fleet of n is allowed FACTOR * n / (n - UNCERTAIN) deviations: fitted to the quantile 0.9999 of normal samples."""

SIGMA = 1.4826
"""From the median absolute deviation to the standard deviation of a normal distribution."""


@dataclass(frozen=True)
class Band:
    """What times are of this fleet."""

    median_ms: float
    spread_ms: float
    """Standard deviation, estimated from the median absolute deviation."""
    limit_ms: float


def learned_band(times_ms: Sequence[float], errors_ms: Sequence[float]) -> Band | None:
    """Return the band of the members of one kind, or None for fewer than FEWEST.

    Args:
        times_ms: of each member.
        errors_ms: by how much each of them is uncertain; the spread is never taken to be less.
    """
    count = len(times_ms)
    if count < FEWEST:
        return None
    centre = median(times_ms)
    spread = max(SIGMA * median(abs(time - centre) for time in times_ms), median(errors_ms))
    return Band(centre, spread, centre + FACTOR * count / (count - UNCERTAIN) * spread)
