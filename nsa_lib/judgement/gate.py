"""What a gate says: PASS, WARN, FAIL or NOT_RUN; the verdict over all gates, and the gates that notebooks share.

Missing data is never a pass: if its case did not end well, a gate fails or did not run, whatever its figures say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nsa_lib.contract.figures import counted, with_unit, written
from nsa_lib.runs.recorded import Recorded
from nsa_lib.subject.config import OWN

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
    user_traceback: str = ""
    """Of a user's code that raised: the frames of hers."""


def how_it_ended(case: Mapping[str, object]) -> str:
    """Return the status of a case, with the reason if it has one."""
    return f"{case['status']}: {case['reason']}" if case["reason"] else str(case["status"])


def outcome_of(case: Mapping[str, object]) -> str:
    """Return the outcome of a gate whose case did not end well."""
    return FAIL if case["status"] in FAILED_STATUSES else NOT_RUN


def unless_cut_short(gate: GateResult, training: Mapping[str, object] | None) -> GateResult:
    """Return the gate, but NOT_RUN instead of a pass where the training did not come to its end."""
    if gate.outcome in (FAIL, NOT_RUN) or ended_well(training):
        return gate
    return replace(gate, outcome=NOT_RUN, detail="the training did not come to its end")


PASSED, WARNING, FAILURE, ERROR, SHOWN = "passed", "warning", "failure", "error", "shown"


def standing(outcome: str, required: bool) -> str:
    """Return what a gate's outcome means for its run: verdict and JUnit say the same of it.

    A warning asks a person, whether the gate is required or not. A gate that is not required neither fails a run nor
    leaves it incomplete: it is only shown.
    """
    if outcome in (PASS, WARN):
        return PASSED if outcome == PASS else WARNING
    return SHOWN if not required else FAILURE if outcome == FAIL else ERROR


def verdict(gates: Sequence[GateResult]) -> tuple[str, list[str]]:
    """Return GO, REVIEW, NO-GO or INCOMPLETE, and the reasons, a sentence for each gate that stands in the way."""
    if not any(gate.required for gate in gates):
        return "INCOMPLETE", ["no gate was judged"]
    for word, kind in (("NO-GO", FAILURE), ("INCOMPLETE", ERROR), ("REVIEW", WARNING)):
        reasons = [_reason(gate) for gate in gates if standing(gate.outcome, gate.required) == kind]
        if reasons:
            return word, reasons
    return "GO", []


def _reason(gate: GateResult) -> str:
    word = {FAIL: "failed", WARN: "warns", NOT_RUN: "did not run"}[gate.outcome]
    figures = ""
    if _is_known(gate.measured) and gate.outcome != NOT_RUN:
        limit = f" (limit {written(gate.limit)})" if _is_known(gate.limit) else ""
        figures = f" at {with_unit(gate.measured, gate.unit)}{limit}"
    return f"{gate.name} {word}{figures}" + (f": {gate.detail}" if gate.detail else "")


def _is_known(figure: float | str | None) -> bool:
    return figure is not None and figure == figure  # NaN is not


def ended_well(case: Mapping[str, object] | None) -> bool:
    """Return whether a case was recorded and came to its end."""
    return case is not None and case["status"] == "ok"


def steps_gate(run: Recorded, case_id: str, name: str, *, required: bool = True) -> GateResult:
    """Judge that a case did all the steps that it was asked for and ended by itself."""
    gate, case = GateResult(name, required, NOT_RUN, unit="steps"), run.case(case_id)
    if case is None or case["asked"] is None:
        return replace(gate, detail=f"no case {case_id} was recorded")
    asked, steps = case["asked"]["steps"], run.of(case_id)["step"].tolist()
    done = len(steps)
    gate = replace(gate, limit=asked, measured=done, detail=how_it_ended(case))
    if not ended_well(case):
        return replace(gate, outcome=outcome_of(case))
    if done != asked:
        return replace(gate, outcome=FAIL, detail=f"ended after {done:,} of {counted(asked, 'step')}")
    if steps != list(range(1, asked + 1)):
        return replace(
            gate, outcome=FAIL, detail=f"its heartbeats, {done} in all, are not of {counted(asked, 'step')}, each once"
        )
    return replace(gate, outcome=PASS)


def route_gate(run: Recorded, case_ids: Iterable[str], name: str) -> GateResult:
    """Judge that every layer ran the backend that was asked for, in recorded steps, as the code named itself."""
    gate, cases = GateResult(name, True, NOT_RUN), [run.case(case_id) for case_id in case_ids]
    if not cases or any(case is None or not case["executed"] or case["asked"] is None for case in cases):
        return replace(gate, detail="a case ended before a step of it was seen")
    if any(route_of(case["asked"]["model"]) is None for case in cases):
        return replace(gate, required=False, detail="dense attention and a user's model name no route")
    asked = {case["case_id"]: route_of(case["asked"]["model"]) for case in cases}
    seen = [(asked[case["case_id"]], layer) for case in cases for step in case["executed"] for layer in step["routes"]]
    ran = sorted({route for _, layer in seen for route in layer or ["none"]})
    wrong = sum(layer != [backend] for backend, layer in seen)
    detail = f"the backend asked for ran in {len(seen) - wrong} of {len(seen)} recorded layers"
    limit, measured = (", ".join(map(run.called, routes)) for routes in (sorted(set(asked.values())), ran))
    said = {"limit": limit, "measured": measured, "detail": detail}
    gate = replace(gate, outcome=FAIL if wrong else PASS, **said)
    return next((cut for case in cases if (cut := unless_cut_short(gate, case)) != gate), gate)


def route_of(model: Mapping[str, object]) -> object:
    """Return what the layers of a case name themselves: a user's attention OWN, NSA its backend, others nothing."""
    if model.get("attention") == "dense" or (model.get("own") or {}).get("role") == "model":
        return None
    return OWN if model.get("attention") == OWN else model["backend"]
