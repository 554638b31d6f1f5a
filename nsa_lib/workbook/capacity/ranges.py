"""Where reserved memory is chaotic: a small change of a size moves it by a lot, so it is a range and no figure.

It is so where the allocator may not use large free blocks for smaller requests. Each step then reserves blocks anew,
and how many depends on the order of all requests.
"""

from __future__ import annotations

import pandas as pd

CHAOTIC = 2.0
"""Times the allocated memory from which reserved counts as chaotic. For the checklist's model, up to 65,536 tokens or
64 sequences, it is at most 1.93 times under every setting but the checklist's, and under that up to 57 times."""


def with_ranges(rows: pd.DataFrame) -> pd.DataFrame:
    """Add to the rows of a sweep between what their reserved memory lies, and why that is a range.

    A prediction is a range if reserved is CHAOTIC times what is allocated or more, or if reserved falls towards a
    neighbour on its axis although the size grows. The range goes from the lowest to the highest prediction of its
    neighbours and its own, and never below what it allocates.

    Columns added: lowest_mib and highest_mib (equal to peak_reserved_mib where it is no range), and reason ("" there).
    """
    curves = [_curve(curve.sort_values(str(axis)), str(axis)) for (axis, _), curve in rows.groupby(["axis", "variant"])]
    return pd.concat(curves).sort_index()


def _curve(curve: pd.DataFrame, axis: str) -> pd.DataFrame:
    reserved, allocated = curve["peak_reserved_mib"], curve["peak_alloc_mib"]
    reasons = [""] * len(curve)
    for place, (mib, needs) in enumerate(zip(reserved, allocated, strict=True)):
        if mib >= CHAOTIC * needs:
            reasons[place] = f"predicted {mib:,.0f} MiB, {CHAOTIC:g} times allocated or more"
    for place in range(1, len(curve)):
        if reserved.iloc[place] < reserved.iloc[place - 1]:
            sizes = f"{curve[axis].iloc[place - 1]:,} to {curve[axis].iloc[place]:,}"
            reasons[place - 1] = reasons[place] = f"reserved falls from {axis} = {sizes}"
    around = reserved.rolling(3, center=True, min_periods=1)
    is_range = pd.Series([bool(reason) for reason in reasons], index=curve.index)
    return curve.assign(
        lowest_mib=reserved.where(~is_range, around.min().clip(lower=allocated)),
        highest_mib=reserved.where(~is_range, around.max()),
        reason=reasons,
    )
