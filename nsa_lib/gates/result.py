"""What a gate says, PASS, WARN, FAIL or NOT_RUN, and the verdict over all of them.

Missing data is never a pass: a gate whose case did not end well fails or did not run, whatever its figures say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

PASS, WARN, FAIL, NOT_RUN = "PASS", "WARN", "FAIL", "NOT_RUN"

FAILED_STATUSES = ("failed", "oom", "nan", "stalled", "timeout", "crashed")
"""Ends of a case that fail the gate it serves; `unavailable` and `interrupted` only leave it unjudged."""


@dataclass(frozen=True)
class GateResult:
    """What one gate found."""

    name: str
    required: bool
    outcome: str
    measured: float | str | None = None
    limit: float | str | None = None
    margin: float | None = None
    """Of an upper limit, limit - measured in the unit; negative when it is exceeded."""
    unit: str = ""
    detail: str = ""


def how_it_ended(case: Mapping[str, object]) -> str:
    """Return the status of a case, with the reason if it has one."""
    return f"{case['status']}: {case['reason']}" if case["reason"] else str(case["status"])


def outcome_of(case: Mapping[str, object]) -> str:
    """Return the outcome of a gate whose case did not end well."""
    return FAIL if case["status"] in FAILED_STATUSES else NOT_RUN


def unless_cut_short(gate: GateResult, training: Mapping[str, object] | None) -> GateResult:
    """Return the gate, but NOT_RUN instead of a pass where the training did not come to its end."""
    if gate.outcome in (FAIL, NOT_RUN) or (training and training["status"] == "ok"):
        return gate
    return replace(gate, outcome=NOT_RUN, detail="the training did not come to its end")


def worst_error(errors: Iterable[float]) -> float:
    """Return the largest error; NaN is worse than any."""
    return max(errors, key=lambda error: float("inf") if error != error else error)


def verdict(gates: Sequence[GateResult]) -> tuple[str, list[str]]:
    """Return GO, REVIEW, NO-GO or INCOMPLETE, and the reasons, a sentence for each gate that stands in the way."""
    required = [gate for gate in gates if gate.required]
    for word, outcome in (("NO-GO", FAIL), ("INCOMPLETE", NOT_RUN)):
        reasons = [_reason(gate) for gate in required if gate.outcome == outcome]
        if reasons:
            return word, reasons
    if not required:
        return "INCOMPLETE", ["no gate was judged"]
    reasons = [_reason(gate) for gate in gates if gate.outcome == WARN]
    return ("REVIEW", reasons) if reasons else ("GO", [])


def _reason(gate: GateResult) -> str:
    word = {FAIL: "failed", WARN: "warns", NOT_RUN: "did not run"}[gate.outcome]
    figures = "" if gate.measured is None else f" at {gate.measured} {gate.unit}".rstrip() + f" (limit {gate.limit})"
    return f"{gate.name} {word}{figures}" + (f": {gate.detail}" if gate.detail else "")
