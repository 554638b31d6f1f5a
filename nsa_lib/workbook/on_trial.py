"""What is said before a run of what a user brings: what will be judged of it, by what, and what cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nsa_lib.contract.agenda import RIGHT
from nsa_lib.contract.figures import counted
from nsa_lib.judgement.attestation import GATES
from nsa_lib.runs.plan import Plan

BY = {
    "future": "edited tokens and gradients of single rows, at a short and at the full length",
    "others": "edited sequences of a batch, padding, a sequence alone",
    "self_error": "itself in float64, or float32, within a measured error budget",
    "finite_difference": "differences of its own forward, in the widest dtype that runs",
    "same_bits": "a second run",
    "checkpointing": "itself without recomputation: gradients, generator, buffers, counters",
    "gradients": "three training steps: a finite gradient that is not zero for every parameter",
    "inputs": "its input and what lives before and after calls",
    "large": "logits above 100",
    "empty": "one token, a few, lengths that are no multiple of anything",
    "reference": "the reference that it brings",
    "copy_near": "a training on sequences that hold one token to be named, a few tokens away",
    "copy_far": "the same with the token half the sequence away",
    "compiled": "itself run eagerly, and the graphs that were made",
}
"""What each check judges by."""


def foretold_on_trial(plan: Plan) -> Iterator[str]:
    """Yield a line for each check of what a user brings, or for the gates that will not run; nothing for ours."""
    found = plan.on_trial
    if found is None:
        return
    version = f", version {found['version']}" if found["version"] else ""
    yield f"on trial: {found['spec']} ({counted(found['files'], 'file')}, sha256 {found['sha256'][:12]}{version})"
    judged = {case.case_id for case in plan.cases if case.work == "checks"}
    if not judged & {"own", *RIGHT}:
        yield from _not_run(plan, found)
        return
    asked = [name for group, names in RIGHT.items() if group in judged for name in names] or BY
    names = [name for name in asked if name != "compiled" or plan["compile"]]
    for name in names:
        yield f"  {name:18} {_standing(name, found):9} {BY[name]}"
    if "own" not in judged:
        yield "  the preflight judges the rest of it"
        return
    if "compiled" not in names:
        yield "  compiled           not asked with compile=True it is held against itself run eagerly"
    if found["role"] == "backend":
        yield "  the float64 reference judges it too: selected, attention, past, route"


def _not_run(plan: Plan, found: Mapping[str, object]) -> Iterator[str]:
    """Yield the gates of a training that will not run on what is on trial, and why."""
    if not any(case.attest for case in plan.cases) or found["role"] == "backend":
        return
    unknown = ", ".join(gate for area, gate in GATES.items() if area != "train_step")
    yield f"  {unknown}: NOT_RUN, the reference does not know the {found['role']} on trial; preflight judges it"
    if found["role"] == "model":
        yield "  route: NOT_RUN, a model names no route"
        if "gradient_checkpointing_enable" not in found["has"]:
            yield "  grad_checkpointing: NOT_RUN, the model has no gradient_checkpointing_enable"


def _standing(name: str, found: Mapping[str, object]) -> str:
    """Return whether a check decides, is only shown, or cannot be made."""
    shown = {"copy_far": True, "same_bits": "deterministic" not in found["has"]}
    if name == "reference" and "reference" not in found["has"]:
        return "has none"
    if name == "checkpointing" and found["role"] == "model" and "gradient_checkpointing_enable" not in found["has"]:
        return "has none"
    return "shown" if shown.get(name) else "required"
