"""What fits: the largest length, batch and depth within a limit, and what each setting changes."""

from __future__ import annotations

import math

import pandas as pd

from nsa_lib.runs.plan import Plan
from nsa_lib.workbook.capacity.cases import AS_ASKED

AXES = {"seq_len": "S, tokens", "batch": "batch", "layers": "layers"}
"""What is swept, and how it is called."""


BELOW, ABOVE = 0.06, 0.13
"""How far below and above its prediction reserved memory may lie, as shares of it. Measured on GPUs it was within in
32 of 33 configurations (tests/prediction_interval.py); the other is one whose prediction is a range here."""


def largest(points: pd.DataFrame, axis: str, limit_mib: float) -> tuple[int, int | None]:
    """Return the largest value of an axis that fits if reserved is high, and if it is low.

    The second is None if even the last point of the sweep fits then: beyond it nothing was predicted.

    High is ABOVE the prediction, or the end of its range; low is BELOW, and never less than what is allocated.

    Between two predictions memory is taken to be a straight line in logarithms. That lies above a sum of powers, so the
    answer is a little small. Beside a range nothing is put between: the answer is a point of the sweep. 0 if not even
    the first point fits.
    """
    points = _with_error(points.sort_values(axis))
    beyond = [place for place, mib in enumerate(points["highest_mib"]) if mib > limit_mib]
    within = [place for place, mib in enumerate(points["lowest_mib"]) if mib <= limit_mib]
    certain = _before(points, axis, "highest_mib", beyond[0], limit_mib) if beyond else int(points[axis].iloc[-1])
    if not within:
        return 0, 0
    after = within[-1] + 1
    return certain, _before(points, axis, "lowest_mib", after, limit_mib) if after < len(points) else None


def _with_error(points: pd.DataFrame) -> pd.DataFrame:
    """Return a sweep with the lowest and highest reserved memory that is to be expected beside its predictions."""
    low, high = points["lowest_mib"] * (1 - BELOW), points["highest_mib"] * (1 + ABOVE)
    return points.assign(lowest_mib=low.clip(lower=points["peak_alloc_mib"]), highest_mib=high)


def _before(points: pd.DataFrame, axis: str, column: str, place: int, limit_mib: float) -> int:
    """Return what fits before the point at `place`, that does not, if reserved is as a column says."""
    if place == 0:
        return 0
    (small, fits_mib), (large, exceeds_mib) = zip(
        *(points[name].iloc[place - 1 : place + 1] for name in (axis, column)), strict=True
    )
    if any(points["reason"].iloc[place - 1 : place + 1]) or fits_mib <= 0:
        return int(small)
    share = math.log(limit_mib / fits_mib) / math.log(exceeds_mib / fits_mib)
    return int(small * (large / small) ** share)


def fits_rows(rows: pd.DataFrame, limit_mib: float) -> pd.DataFrame:
    """Return the largest S, batch and layers that fit, each with the other two as asked, and what memory is then.

    Columns: axis and fits, in words; at (the largest point of the sweep that fits even so, or else its first);
    phase (of the peak there); dominated_by (the largest terms there).
    """
    found = []
    for axis, words in AXES.items():
        points = rows[(rows["axis"] == axis) & (rows["variant"] == AS_ASKED)].sort_values(axis)
        certain, possible = largest(points, axis, limit_mib)
        inside = points[points[axis] <= certain]
        last = (points.iloc[:1] if inside.empty else inside).iloc[-1]
        total = sum(last["terms"].values())
        ranked = sorted(last["terms"].items(), key=lambda term: -term[1])[:3]
        found.append(
            {
                "axis": words,
                "fits": _said(certain, possible, points[axis].iloc[-1]),
                "at": f"{last[axis]:,}",
                "dominated_by": ", ".join(f"{name} {mib / total:.0%}" for name, mib in ranked if mib),
                "phase": last["phase"],
            }
        )
    return pd.DataFrame(found)


def _said(certain: int, possible: int | None, last: int) -> str:
    """Say what fits; of what lies beyond the last point that was predicted nothing is known."""
    if possible is None:
        return f"{certain:,} or more, the largest predicted" if certain == last else f"{certain:,} to {last:,} or more"
    if not possible:
        return "nothing of the sweep"
    return f"{certain:,}" if certain == possible else f"{certain:,} to {possible:,}"


def changes_rows(rows: pd.DataFrame, plan: Plan, limit_mib: float) -> pd.DataFrame:
    """Return what checkpointing, the loss in chunks and the allocator setting change, a row each, as asked first.

    Columns: change, peak_alloc_mib, lowest_mib and highest_mib (of reserved) at the sizes asked for, seq_len and layers
    (the largest that fit).
    """
    return pd.DataFrame(
        [_change(rows[rows["variant"] == variant], plan, limit_mib) for variant in rows["variant"].unique()]
    )


def _change(rows: pd.DataFrame, plan: Plan, limit_mib: float) -> dict[str, object]:
    points = {axis: rows[rows["axis"] == axis] for axis in ("seq_len", "layers")}
    asked = points["seq_len"][points["seq_len"]["seq_len"] == plan["seq_len"]].iloc[0]
    return {
        "change": asked["variant"],
        **{name: asked[name] for name in ("peak_alloc_mib", "lowest_mib", "highest_mib")},
        **{axis: _said(*largest(found, axis, limit_mib), found[axis].max()) for axis, found in points.items()},
    }
