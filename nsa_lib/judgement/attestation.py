"""The gates over recorded steps: what the judge found wrong, and whether what ran is what was asked for.

The reference computed every recorded step a second time. A part that it compared in no layer did not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nsa_lib.contract.case import GRAPH, REPLAYED_STEPS
from nsa_lib.contract.figures import counted
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, GateResult, unless_cut_short
from nsa_lib.runs.recorded import Recorded

AREAS = {
    "attention": "branches, branch gates and output of the attention, row by row, against float64",
    "choice": "the blocks that queries selected, against float64 scores",
    "backward": "gradients of the attention's input and parameters, from all rows, against float64",
    "train_step": "the loss over all positions, every gradient, and the update by AdamW's rule",
    "blocks": "embedding, norms, MLPs and residuals, forward and backward, against float64",
}
"""What is judged of a recorded step, by the name of its area in the record."""

GATES = {"attention": "attention", "choice": "choice", "backward": "gradients", "train_step": "train_step",
         "blocks": "blocks"}  # fmt: skip
"""The gate of each area."""

OF_EACH_LAYER = {"attention": "output", "choice": "choice", "blocks": "block"}
"""What of an area every layer has: it must have been compared in FEWEST_LAYERS of them, if there are so many."""

FEWEST_LAYERS = 2

FEWEST_ROWS = 128
"""Rows of each sequence that are compared of it, where it has so many."""

FEWEST_STEPS = 3
"""Steps that are recorded of a case, if it has so many: the first, one on the way, the last."""

SHOWN = 3
"""Findings that a gate's detail names."""


def attested_gate(run: Recorded, case_id: str, area: str, suffix: str = "") -> GateResult:
    """Judge one area of the recorded steps of a case; `suffix` follows the gate's name."""
    gate, case = GateResult(GATES[area] + suffix, True, NOT_RUN, limit=0, unit="findings"), run.case(case_id)
    if case is not None and area != "train_step" and (why := why_no_reference(case["asked"])):
        return replace(gate, required=False, detail=why)
    if case is not None and case["asked"] is not None and area == "blocks" and case["asked"]["compile"] == GRAPH:
        # Nothing runs between blocks that could be asked; a smoke without a graph judges the same ones.
        gate = replace(gate, required=False)
    steps = None if case is None else case["attestation"]
    if not steps or case["asked"] is None:
        return replace(gate, detail=f"the case {case_id} ended before its steps were judged")
    wrong = [f"step {s['step']}, {what}: {said}" for s in steps for what, said in s["wrong"][area].items()]
    if wrong:
        more = f"; {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        return replace(gate, outcome=FAIL, measured=len(wrong), detail="; ".join(wrong[:SHOWN]) + more)
    if missing := [*_unseen_steps(steps, case["asked"]), *_not_compared(steps, area, case["asked"])]:
        return replace(gate, detail=f"not compared: {'; '.join(missing[:SHOWN])}")
    detail = f"{AREAS[area]}; steps {', '.join(str(s['step']) for s in steps)}; {steps[0]['compared']}"
    return unless_cut_short(replace(gate, outcome=PASS, measured=0, detail=detail), case)


def why_no_reference(asked: Mapping | None) -> str | None:
    """Return why the float64 reference knows nothing of the layers of a case, or None where it knows them."""
    dense = asked is not None and asked["model"].get("attention") == "dense"
    if asked is None or not (dense or brings(asked) in ("attention", "model")):
        return None
    what = brings(asked) or "dense attention"
    return f"the reference does not know the {what} on trial; the preflight judges it by what it owes without one"


def brings(asked: Mapping) -> str | None:
    """Return what of the model of a case is a user's: `attention`, `backend`, `model` or None."""
    own = asked["model"].get("own")
    return own["role"] if own else None


def replay_gate(run: Recorded, case_id: str, suffix: str = "") -> GateResult:
    """Judge that steps which nobody recorded came out the same when they were taken again and recorded.

    Code that is right only where it is looked at fails here.
    """
    gate, case = GateResult(f"unrecorded{suffix}", True, NOT_RUN, limit=0, unit="findings"), run.case(case_id)
    found = None if case is None else case["replay"]
    if found is None:
        return replace(gate, detail=f"the case {case_id} ended before steps of it were taken again")
    wrong = [f"{what}: {said}" for what, said in found["wrong"].items()]
    judged = found["judged"] or {"wrong": {}}
    wrong += [f"{what}, again: {said}" for area in judged["wrong"].values() for what, said in area.items()]
    if wrong:
        more = f"; {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        return replace(gate, outcome=FAIL, measured=len(wrong), detail="; ".join(wrong[:SHOWN]) + more)
    steps, due = found["steps"], max(0, min(REPLAYED_STEPS, case["asked"]["steps"] - 2))
    if len(steps) < due:
        return replace(gate, detail=f"{counted(len(steps), 'step')} taken again, {due} are due")
    updates = case["asked"]["steps"] if case["asked"]["work"] == "train" else 0
    if found.get("followed", 0) != updates:
        return replace(gate, detail=f"{counted(found.get('followed', 0), 'update')} followed, {updates:,} are due")
    detail = "every step was recorded"
    if steps:
        same = "losses and gradient norms agree within what sums of another order may change"
        if found["same_bits"]:
            same = "losses, gradient norms, parameters and optimizer state have the same bits"
        span = f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"step {steps[0]}"
        detail = f"{span} taken again: {same}; step {judged['step']} judged"
    return unless_cut_short(replace(gate, outcome=PASS, measured=0, detail=detail), case)


def _unseen_steps(steps: Sequence[Mapping], asked: Mapping) -> list[str]:
    """Return which of the steps that must be judged were not."""
    found, last = [step["step"] for step in steps], asked["steps"]
    missing = [f"step {step}: it was not recorded" for step in dict.fromkeys((1, last)) if step not in found]
    few = len(set(found)) < min(FEWEST_STEPS, last)
    return missing or (["a step between the first and the last: none was recorded"] if few else [])


def _not_compared(steps: Sequence[Mapping], area: str, asked: Mapping) -> list[str]:
    """Return what of an area was compared in no layer, or in too few, in the first or the last step."""
    found = []
    for step in (steps[0], steps[-1]):
        rows = [row for row in step["coverage"] if row["area"] == area]
        compared = {row["part"] for row in rows if row["why_not"] is None}
        without = [row for row in rows if row["why_not"] is not None and row["part"] not in compared]
        missing = [f"{_named(row)}: {row['why_not']}" for row in without] or _too_few(rows, area, asked)
        found += [f"step {step['step']}, {what}" for what in missing]
    return found


def _too_few(rows: Sequence[Mapping], area: str, asked: Mapping) -> list[str]:
    """Return it if what every layer has was compared in fewer layers than it must, or nothing of an area at all."""
    compared = [row for row in rows if row["why_not"] is None]
    if area == "choice" and "slc" not in asked["model"]["nsa"]["branches"]:
        return []
    if area not in OF_EACH_LAYER:
        return [] if compared else ["nothing of it was compared"]
    part, wanted = OF_EACH_LAYER[area], min(FEWEST_LAYERS, asked["model"]["layers"])
    compared = [row for row in compared if row["part"] == part]
    layers = {row["layer"] for row in compared}
    if len(layers) < wanted:
        return [f"{part}: compared in {counted(len(layers), 'layer')}, in {wanted} is asked"]
    if area == "blocks":
        return []
    rows, due = min(row.get("rows") or 0 for row in compared), asked["batch"] * min(FEWEST_ROWS, asked["seq_len"])
    return [] if rows >= due else [f"{part}: compared in {counted(rows, 'row')} of a layer, in {due} is asked"]


def _named(row: Mapping) -> str:
    return row["part"] if row["layer"] is None else f"layer {row['layer']} {row['part']}"


def executed_gate(run: Recorded, case_id: str) -> GateResult:
    """Judge that parameters, gradients, optimizer state and activations had the dtype and device asked for."""
    gate, case = GateResult("executed", True, NOT_RUN), run.case(case_id)
    if case is None or not case["executed"] or case["asked"] is None:
        return replace(gate, detail="the case ended before a step of it was seen")
    asked = f"{case['asked']['dtype']} on {case['asked']['device']}"
    dtypes = {dtype for step in case["executed"] for found in step["dtypes"].values() for dtype in found}
    devices = {device for step in case["executed"] for device in step["devices"]}
    found = f"{', '.join(sorted(dtypes))} on {', '.join(sorted(devices))}"
    kinds = ", ".join(case["executed"][0]["dtypes"])
    gate = replace(gate, limit=asked, measured=found, detail=f"{kinds} of {len(case['executed'])} steps")
    return unless_cut_short(replace(gate, outcome=PASS if found == asked else FAIL), case)


def recomputation_gate(run: Recorded, case_id: str, *, prerequisite: bool) -> GateResult:
    """Judge that gradient checkpointing is on and did recompute: every layer's forward ran twice a recorded step.

    It is required as a prerequisite, and wherever it was asked for.
    """
    gate, case = GateResult("grad_checkpointing", True, NOT_RUN, limit="on"), run.case(case_id)
    if case is None or case["asked"] is None:
        return replace(gate, detail="no case was recorded")
    gate = replace(gate, required=prerequisite or case["asked"]["grad_checkpointing"])
    if (why := _why_its_own(run, case)) and case["asked"]["grad_checkpointing"]:
        return replace(gate, required=False, detail=why)
    if not case["asked"]["grad_checkpointing"]:
        return unless_cut_short(replace(gate, outcome=FAIL, measured="off"), case)
    if not case["executed"]:
        return replace(gate, detail="no step whose passes could be counted")
    passes = sorted({count for step in case["executed"] for count in step["passes"]})
    if passes in ([], [0]):
        return replace(gate, detail="compiled layers that do not show themselves: their passes cannot be counted")
    on = passes == [2]
    detail = f"a layer's forward ran {' or '.join(map(str, passes))} times a step; twice is asked"
    gate = replace(gate, outcome=PASS if on else FAIL, measured="on" if on else "not in force", detail=detail)
    return unless_cut_short(gate, case)


def _why_its_own(run: Recorded, case: Mapping) -> str | None:
    """Return why nobody can see whether a user's model recomputes, or None."""
    if brings(case["asked"]) != "model":
        return None
    if "gradient_checkpointing_enable" not in (run.info.get("on_trial") or {}).get("has", ()):
        return "the model on trial has no gradient_checkpointing_enable: it keeps what it keeps"
    if case["executed"] and not case["executed"][0]["passes"]:
        return "the model on trial has no list of layers whose passes could be counted"
    return None
