"""The gate of one check: what a case of checks recorded of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, GateResult, ended_well, how_it_ended, outcome_of
from nsa_lib.runs.recorded import Recorded


def check_gate(run: Recorded, group: str, name: str, suffix: str = "") -> GateResult:
    """Judge one check by what its case recorded; one that is missing fails with its case, or did not run.

    `suffix` follows the gate's name.
    """
    gate, case = GateResult(name + suffix, True, NOT_RUN), run.case(group)
    if case is None:
        return replace(gate, detail=f"no case {group} was recorded")
    found = next((check for check in case["checks"] or () if check["name"] == name), None)
    if found is None and ended_well(case):
        return replace(gate, detail=f"the case {group} recorded no such check")
    if found is None:
        return replace(gate, outcome=outcome_of(case), detail=f"the case {group} ended before: {how_it_ended(case)}")
    figures = {field: found[field] for field in ("measured", "limit", "unit", "detail")}
    raised = found.get("user_traceback", "")
    gate = replace(gate, required=found.get("required", True), user_traceback=raised, **figures)
    if not found.get("judged", True):  # a person must decide over what is required and could not be judged
        return replace(gate, outcome=WARN if gate.required else NOT_RUN)
    return replace(gate, outcome=PASS if found["holds"] is True else FAIL, margin=_margin(found))


def _margin(check: Mapping[str, object]) -> float | None:
    """Return how far a figure is from its limit, negative where the check does not hold."""
    measured, limit = check["measured"], check["limit"]
    if isinstance(measured, str) or isinstance(limit, str):
        return None
    distance = abs(limit - measured)
    return distance if check["holds"] else -distance
