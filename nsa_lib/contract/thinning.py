"""By which of its points a long trace looks the same: what charts and the live progress draw of it."""

from __future__ import annotations

import numpy as np


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Return the places of at most `most` values by which a trace looks the same.

    Of each stretch its lowest and its highest value stay, so that no spike is lost, and one that is missing, so that
    no gap is.
    """
    if len(values) <= most:
        return np.arange(len(values))
    places = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), stretches(most)):
        own = values[stretch]
        known = np.isfinite(own)
        if known.any():
            places |= {stretch[np.where(known, own, np.inf).argmin()], stretch[np.where(known, own, -np.inf).argmax()]}
        if not known.all():
            places.add(stretch[known.argmin()])
    return np.array(sorted(places))


def stretches(most: int) -> int:
    """Return into how many stretches `thinned` parts a trace: each leaves three points at most, its ends one each."""
    return (most - 2) // 3
