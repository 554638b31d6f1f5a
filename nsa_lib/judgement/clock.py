"""The gate over the times of a case: by another clock than the one that took them, and against the pace."""

from __future__ import annotations

from dataclasses import replace

from nsa_lib.contract.figures import short
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, GateResult, unless_cut_short
from nsa_lib.runs.recorded import Recorded

CLOCK_PERCENT = (30.0, 101.0)
"""What share of the time from one heartbeat to the next the step in it may take, at the median: what else is done
between two steps takes little, and nothing takes less than no time."""

PACE_ERROR = 0.01
"""By how much tokens a second may differ from tokens over step time."""

FEWEST_STEPS = 3


def clock_gate(run: Recorded, case_id: str) -> GateResult:
    """Judge that step times are those between the heartbeats, by another clock, and that the pace is made of them."""
    low, high = CLOCK_PERCENT
    gate, case = GateResult("clock", True, NOT_RUN, limit=high, unit="%"), run.case(case_id)
    times = run.of(case_id)[["ts", "step_ms", "tokens_per_s"]].astype(float)
    if case is None or case["asked"] is None or len(times) < FEWEST_STEPS or times.isna().any(axis=None):
        return replace(gate, detail="too few steps were timed, or one without a figure")
    share = float((100 * times["step_ms"] / (1000 * times["ts"].diff())).iloc[1:].median())
    asked = case["asked"]["batch"] * case["asked"]["seq_len"]
    pace = float((times["tokens_per_s"] * times["step_ms"] / 1000 / asked - 1).abs().max())
    detail = f"a step takes {share:.0f} % of the time between heartbeats, {low:g} to {high:g} % is right; "
    detail += f"{asked:,} tokens a step, off by {short(100 * pace, 2)} %"
    holds = low <= share <= high and pace <= PACE_ERROR
    gate = replace(gate, outcome=PASS if holds else FAIL, measured=round(share, 1), detail=detail)
    return unless_cut_short(gate, case)
