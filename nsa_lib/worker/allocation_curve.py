"""What is allocated over one step, measured or predicted, in the same form: by phase, from allocation to allocation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nsa_lib.contract.allocator import MIB
from nsa_lib.contract.thinning import thinned

Levels = Mapping[str, Sequence[int]]
"""Bytes allocated at the begin of each phase and after each allocation and free in it."""

MOST_POINTS = 500
"""Points of a phase that are kept, its highest and lowest among them."""


def allocation_curve(levels: Levels) -> dict[str, dict[str, object]]:
    """Return for each phase its number of allocations and frees, `events`, and how many `mib` were held `at` which."""
    curve = {}
    for phase, held in levels.items():
        places = thinned(np.asarray(held, dtype=float), MOST_POINTS)
        mib = [held[place] / MIB for place in places]
        curve[phase] = {"events": len(held) - 1, "at": places.tolist(), "mib": mib}
    return curve
