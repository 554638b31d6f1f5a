"""The largest of some figures, among which NaN is never overlooked."""

from __future__ import annotations

import math
from collections.abc import Iterable


def largest(figures: Iterable[float]) -> float:
    """Return the largest figure; NaN if one of them is, or if there is none.

    Python's own `max` passes over a NaN that is not the first.
    """
    return max(figures, key=lambda figure: math.inf if math.isnan(figure) else figure, default=math.nan)
