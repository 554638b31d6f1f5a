"""The gate over the times of a case: by another clock than the one that took them, and against the pace."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from nsa_lib.contract.figures import short
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, GateResult, unless_cut_short
from nsa_lib.runs.recorded import Recorded

BETWEEN_PERCENT, BETWEEN_MS = 20.0, 5.0
"""What may lie between two steps, at the median: so much of the time from one heartbeat to the next, or so many ms. It
was 2 % at most on a quiet laptop, below 1 ms, and 11 % on one with three times as much to do as it has cores; with a
CUDA graph's steps of 23 ms on an H200 it was 2.3 ms."""

CLOCK_ERROR_PERCENT = 1.0
"""By how much a step may seem longer than the time between its heartbeats: one clock is set while the other runs."""

PACE_ERROR = 0.01
"""By how much tokens a second may differ from tokens over step time."""

FEWEST_STEPS = 12
"""After the first steps and two more, parameters are hashed: of fewer steps those are the median."""


def clock_gate(run: Recorded, case_id: str) -> GateResult:
    """Judge that step times are those between the heartbeats, by another clock, and that the pace is made of them."""
    gate, case = GateResult("clock", True, NOT_RUN, limit=100 + CLOCK_ERROR_PERCENT, unit="%"), run.case(case_id)
    times = run.of(case_id)[["ts", "step_ms", "tokens_per_s"]].astype(float)
    if case is None or case["asked"] is None or len(times) < FEWEST_STEPS or times.isna().any(axis=None):
        return replace(gate, detail="too few steps were timed, or one without a figure")
    between_ms = 1000 * times["ts"].diff()
    share, why = (
        float((100 * times["step_ms"] / between_ms).iloc[1:].median()),
        why_mistimed(times["step_ms"], between_ms),
    )
    tokens = case["asked"]["batch"] * case["asked"]["seq_len"]
    error = float((times["tokens_per_s"] * times["step_ms"] / 1000 / tokens - 1).abs().max())
    if error > PACE_ERROR:
        why = f"{why}; " * bool(why) + f"a step has {tokens:,} tokens, its pace is off by {short(100 * error, 2)} %"
    detail = why or f"steps take the time between their heartbeats, {tokens:,} tokens each at the pace that is told"
    gate = replace(gate, outcome=FAIL if why else PASS, measured=round(share, 1), detail=detail)
    return unless_cut_short(gate, case)


def why_mistimed(step_ms: pd.Series, between_ms: pd.Series) -> str:
    """Return why times of steps are not those between their heartbeats, by their medians; "" if they are.

    Args:
        step_ms: of each step.
        between_ms: from the heartbeat before to its own; a step that has none before is passed over.
    """
    whole_ms, rest_ms = float(between_ms.median()), float((between_ms - step_ms).median())
    most_ms = max(BETWEEN_PERCENT / 100 * whole_ms, BETWEEN_MS)
    if -CLOCK_ERROR_PERCENT / 100 * whole_ms <= rest_ms <= most_ms:
        return ""
    said = f"{short(whole_ms, 3)} ms lie between two heartbeats, a step is said to take {short(step_ms.median(), 3)} ms"
    return f"{said}; {short(most_ms, 2)} ms may lie between two steps"
