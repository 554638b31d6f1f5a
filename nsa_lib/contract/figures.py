"""The largest of some figures, among which NaN is never overlooked.

Python's own `max` passes over a NaN that is not the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping


def largest(figures: Iterable[float]) -> float:
    """Return the largest figure; NaN if one of them is, or if there is none."""
    return max(figures, key=_rank, default=math.nan)


def name_of_largest(figures: Mapping[str, float]) -> str:
    """Return the name of the largest figure; of the first NaN if one of them is."""
    return max(figures, key=lambda name: _rank(figures[name]))


def _rank(figure: float) -> tuple[bool, float]:
    return math.isnan(figure), figure
