"""The gate over the figures of memory: whether they have the order they must have, and the meter reads what is held."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pandas as pd

from nsa_lib.contract.figures import counted
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, GateResult, unless_cut_short
from nsa_lib.runs.recorded import Recorded

SMALLEST_SEGMENT_MIB = 2
"""What an allocator reserves is a multiple of it, whatever its setting: a figure that is not was never reserved."""

STEP_ORDERS = (
    ("alloc_mib", "reserved_mib", "peak_reserved_mib"),
    ("alloc_mib", "active_mib", "reserved_mib"),
    ("alloc_mib", "peak_alloc_mib", "peak_reserved_mib"),
)
"""Figures of a step, none of which is less than the one before it: nothing is held beyond its own peak."""

METER_ERROR = 0.01
"""By how much a meter may misread what is held: its units are 512 bytes."""


def memory_order_gate(run: Recorded) -> GateResult:
    """Judge that state <= peak allocated <= peak reserved <= device total, and that the meter reads what is held.

    A figure in the wrong unit breaks the one or the other, and what is reserved comes in whole segments. The figures of
    each step have an order too.
    """
    gate = GateResult("memory_order", True, PASS, limit="holds")
    training, rows, meter = run.case("training") or {}, run.of("training"), run.fact("training", "meter")
    order = [training.get("state_mib"), rows["peak_alloc_mib"].max(), rows["peak_reserved_mib"].max()]
    if run.parameter("device") == "cuda":
        order.append(training.get("device_total_mib"))
    if any(pd.isna(mib) for mib in order) or meter is None:
        return replace(gate, outcome=NOT_RUN, detail="the case ended before its memory was read")
    reads = abs(meter["read_mib"] / meter["held_mib"] - 1) <= METER_ERROR
    whole = meter["reserved_mib"] % SMALLEST_SEGMENT_MIB == 0
    broken = _broken_steps(rows)
    holds = reads and whole and not broken and all(low <= high for low, high in pairwise(order))
    names = ("state", "allocated", "reserved", "device")
    detail = " <= ".join(f"{name} {mib:,.1f}" for name, mib in zip(names, order, strict=False)) + " MiB"
    detail += f"; of {meter['held_mib']:g} MiB held at the end the meter reads {meter['read_mib']:g}"
    detail += "" if whole else f"; {meter['reserved_mib']:,.2f} MiB reserved then are no whole segments"
    detail += f"; {broken}" if broken else ""
    gate = replace(gate, outcome=PASS if holds else FAIL, measured="holds" if holds else "broken", detail=detail)
    return unless_cut_short(gate, training)


def _broken_steps(rows: pd.DataFrame) -> str:
    """Return how many steps have figures that break their order, in words, or "".

    Of what is active the allocator cudaMallocAsync tells 0.
    """
    untold = "active_mib" if not rows["active_mib"].any() else None
    pairs = [pair for order in STEP_ORDERS for pair in pairwise(order) if untold not in pair]
    broken = {f"{low} > {high}": int((rows[low].astype(float) > rows[high].astype(float)).sum()) for low, high in pairs}
    return "; ".join(f"{what} in {counted(steps, 'step')}" for what, steps in broken.items() if steps)
