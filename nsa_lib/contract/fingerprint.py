"""The fingerprint of a case: hashes of what it computed, by which runs, GPUs and days are compared bit by bit.

Each worker, or rank, writes one as FILE into its own folder, beside its heartbeats:

    schema, of, deterministic, why_not, where, losses, steps, again

`of` is what the bits depend on; two fingerprints are comparable if it is the same. `deterministic` says whether the
case's kernels give the same bits in two runs, `why_not` why they may not. `losses` has the loss of every step, `steps`
by the number of a step the hash of all `parameters` after it, and by the index of a layer the hashes of its `output`,
`choice` of blocks and `gradients`. `again` holds what came out when the steps were repeated: `where`, `losses`, `steps`
of each time. A run that is compared with kept ones has copies of them in its folder KEPT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject.config import FUSED, OWN

FILE = "fingerprint.json"

KEPT = "kept"
"""Folder in that of a run: the fingerprints of earlier runs that it is compared with."""

SCHEMA = 1

REPEATED_STEPS = 3
"""Steps of a training that a second case takes again: at most so many."""

MACHINE = ("driver", "torch", "torch_cuda", "triton", "package_sha256", "data_sha256", "on_trial_sha256")
"""Facts of a case's origin on which its bits depend, besides the kind of its device."""

NO_BITS = (
    "case_id", "work", "steps", "warmup_steps", "alloc_conf", "device_budget_gib", "detect_anomaly", "check_attention",
    "compare_selected", "attest", "show_fresh", "profile_operators", "look", "seq_lens", "backends", "fault",
    "digest_parts", "fingerprint", "repeats", "data",
)  # fmt: skip
"""Fields of a case on which its bits do not depend: how long it is, what is watched. Its data has a hash of its own."""


def fingerprint_steps(steps: int) -> tuple[int, ...]:
    """Return the steps of which more than the loss is recorded: the first, a middle and the last, and the repeated."""
    wanted = {*range(1, REPEATED_STEPS + 1), (1 + steps) // 2, steps}
    return tuple(sorted(step for step in wanted if step <= steps))


def why_not_deterministic(case: CaseConfig) -> str:
    """Return why a case need not give the same bits in two runs, or "" if it must."""
    if case.device == "cpu":
        return ""
    if case.compile:
        return f"compile={case.compile}: each process tunes its kernels anew"
    if case.is_launched:
        return f"strategy={case.strategy}: NCCL may add in another order"
    if case.model.brings:
        return f"{case.model.own.label}: nothing is known of its kernels on cuda"
    if case.model.attention == "dense" or case.model.backend != FUSED:
        named = "attention=dense" if case.model.attention == "dense" else f"backend={case.model.backend}"
        return f"{named}: torch's kernels for it add in no fixed order on cuda; backend={FUSED} does"
    return ""


def made_of(case: CaseConfig, origin: Mapping[str, object]) -> dict[str, object]:
    """Return what the bits of a case depend on, from the case and what its worker found.

    Args:
        case: what ran.
        origin: as `worker.origin` tells it, and `on_trial` if the case has a user's code.
    """
    fields = {name: value for name, value in asdict(case).items() if name not in NO_BITS}
    if case.model.own is not None:  # known by its hash, wherever it lies
        fields["model"]["own"] = {OWN: case.model.own.label, "arguments": dict(case.model.own.arguments)}
    device_kind = origin["gpu"] or origin["processor"]
    facts = {**origin, "on_trial_sha256": (origin.get("on_trial") or {}).get("sha256")}
    told = {"case": fields, "device_kind": device_kind, **{name: facts.get(name) for name in MACHINE}}
    return json.loads(json.dumps(told))


def differing(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """Return the names of what two fingerprints are `of` that are not the same; of a case by its field."""
    found = []
    for name in one["of"].keys() | other["of"].keys():
        mine, theirs = one["of"].get(name), other["of"].get(name)
        if name == "case" and isinstance(mine, dict) and isinstance(theirs, dict):
            found += [field for field in mine.keys() | theirs.keys() if mine.get(field) != theirs.get(field)]
        elif mine != theirs:
            found.append(name)
    return sorted(found)


def first_difference(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    """Return where two fingerprints part, in words, over the steps that both have; "" if they do not."""
    parted = parting(one, other)
    return f"step {parted[0]}, {parted[1]}" if parted else ""


def parting(one: Mapping[str, object], other: Mapping[str, object]) -> tuple[int, str] | None:
    """Return the step in which two fingerprints part, and in what, over the steps that both have; None if they do not.

    The order is that of a step: forward, loss, backward, update.
    """
    losses = list(zip(one["losses"], other["losses"], strict=False))
    for step, (mine, theirs) in enumerate(losses, start=1):
        own, their = (found["steps"].get(str(step), {}) for found in (one, other))
        if part := _layers_part(own, their, ("choice", "output")):
            return step, part
        if mine != theirs:
            return step, "loss"
        if part := _layers_part(own, their, ("gradients",)):
            return step, part
        if own and their and own["parameters"] != their["parameters"]:
            return step, "parameters after it"
    return None


def _layers_part(own: Mapping, their: Mapping, parts: tuple[str, ...]) -> str:
    """Return the first layer and part of a step that differ, in words, or ""."""
    layers = own.get("layers", {}).keys() & their.get("layers", {}).keys()
    for layer in sorted(layers, key=int):
        for part in parts:
            if own["layers"][layer].get(part) != their["layers"][layer].get(part):
                return f"layer {int(layer) + 1}: {part}"
    return ""
