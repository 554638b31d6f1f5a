"""Figures: the largest of some, among which NaN is never overlooked, and how one is written, alone or with its unit.

Python's own `max` passes over a NaN that is not the first.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping


def largest(figures: Iterable[float]) -> float:
    """Return the largest figure; NaN if one of them is, or if there is none."""
    return max(figures, key=_rank, default=math.nan)


def name_of_largest(figures: Mapping[str, float]) -> str:
    """Return the name of the largest figure; of the first NaN if one of them is."""
    return max(figures, key=lambda name: _rank(figures[name]))


def _rank(figure: float) -> tuple[bool, float]:
    return math.isnan(figure), figure


def written(value: object) -> str:
    """Return a value for reading: of a number four significant digits, thousands separated."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if math.isfinite(value) and (abs(value) >= 1000 or value == int(value)):
        return f"{value:,.0f}"
    return f"{value:.4g}"


COUNTED = (
    "calls", "cases", "checks", "contestants", "contradictions", "differences", "findings", "healthy members", "layers",
    "members", "operators", "pairs", "parameters", "ranks", "rows", "runs", "stale runs", "steps", "tensors",
)  # fmt: skip
"""Units that count: of one they are in the singular."""


def with_unit(value: object, unit: str) -> str:
    """Return a value with its unit: `3 steps`, `1 step`, `75,420 MiB`."""
    one = unit in COUNTED and value == 1 and not isinstance(value, bool)
    return f"{written(value)} {unit[:-1] if one else unit}".rstrip()


def counted(count: int, thing: str) -> str:
    """Return how many there are of a thing that is named in the singular: `1 step`, `2,000 steps`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def short(figure: float, digits: int) -> str:
    """Return a figure with so many significant digits, and all of those before its point: `0.123`, `2,249`."""
    return f"{figure:,.0f}" if abs(figure) >= 10 ** (digits - 1) else f"{figure:.{digits}g}"


def signed_percent(percent: float) -> str:
    """Return a difference for reading, with a decimal: `+1.2 %`; one that rounds to nothing has no minus."""
    return f"{round(percent, 1) + 0.0:+.1f} %"


def step_time(ms: float) -> str:
    """Return the time of a step for reading, with three significant digits: `0.52 ms`, `383 ms`, `11.4 s`."""
    return f"{short(ms / 1000, 3)} s" if ms >= 10_000 else f"{short(ms, 3)} ms"


def duration(seconds: float) -> str:
    """Return a time for reading, with its two largest units: `12 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
