"""The gate over operator counts, which every notebook that counts operators shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.evidence import from_json
from nsa_lib.gates.result import FAIL, NOT_RUN, PASS, GateResult, how_it_ended, outcome_of
from nsa_lib.operators import WINDOW_STEPS, operator_growth


def growth_gate(name: str, case: Mapping[str, object] | None) -> GateResult:
    """Judge that no operator of a case is called more often late than right after warm-up."""
    gate = GateResult(name, True, NOT_RUN, limit=0, unit="operators")
    if case is not None and case["status"] != "ok":
        return replace(gate, outcome=outcome_of(case), detail=how_it_ended(case))
    windows = from_json(case, "operators")
    if not windows:
        return replace(gate, detail="no two windows of steps were counted")
    early, late = ({op: row["count"] for op, row in windows[when].items()} for when in ("early", "late"))
    growth = operator_growth(early, late, steps=WINDOW_STEPS)
    calls, later = (f"{sum(counts.values()):,}" for counts in (early, late))
    detail = f"{calls} calls in an early step, {later} in a late one, of operators and of what they launch"
    if growth.grown:
        detail += f"; grew: {', '.join(growth.grown)}"
    outcome = FAIL if growth.has_grown else PASS
    return replace(gate, outcome=outcome, measured=len(growth.grown), detail=detail)
