"""The cases of a capacity: train steps whose memory is predicted, over lengths, batches and depths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nsa_lib.contract.agenda import DENSE
from nsa_lib.contract.case import DEVICES, CaseConfig
from nsa_lib.contract.figures import counted
from nsa_lib.runs.own import PARAMETERS as OWN_PARAMETERS
from nsa_lib.runs.own import brought
from nsa_lib.runs.parameters import SIZES, Parameter, Value
from nsa_lib.runs.request import Request
from nsa_lib.runs.training_case import training_case
from nsa_lib.workbook.profiles import BACKEND, MACHINE, RUN, SIZES_OF

DEEPEST = 48
"""Layers up to which other depths than the one asked for are predicted: a layer takes a prediction 0.2 s."""

AS_ASKED, ONE_PIECE = "as asked", "loss in one piece"


@dataclass(frozen=True)
class Point:
    """One point of a sweep."""

    axis: str
    """What grows along the sweep: `seq_len`, `batch` or `layers`; the other two are as asked."""
    variant: str
    """`as asked`, `checkpointing on`, `checkpointing off` or `loss in one piece`."""
    case: CaseConfig


def sweep_points(values: Mapping[str, Value]) -> list[Point]:
    """Return the points of the sweep: lengths and depths in every variant, batches as asked.

    `checkpointing off` is there where it was asked for, `on` where not; `loss in one piece` makes all logits at once.
    """
    unused = {"steps": 2, "lr": 3e-4, "seed": 0, "fault": "none", "device_budget_gib": None}
    asked = training_case({**values, **{name: Value(name, value, "default", None) for name, value in unused.items()}})
    sizes = {
        "seq_len": {*values["seq_lens"].value, asked.seq_len},
        "layers": _depths(asked.model.layers),
        "batch": {*values["batches"].value, asked.batch},
    }
    checkpointing = "checkpointing off" if asked.grad_checkpointing else "checkpointing on"
    return [
        Point(axis, variant, _named(_varied(_sized(asked, axis, size), variant)))
        for axis, swept in sizes.items()
        for variant in ((AS_ASKED,) if axis == "batch" else (AS_ASKED, checkpointing, ONE_PIECE))
        for size in sorted(swept)
    ]


def _depths(asked: int) -> set[int]:
    return {asked, *(depth for depth in (asked // 2, 2 * asked, 4 * asked) if 0 < depth <= DEEPEST)}


def _sized(case: CaseConfig, axis: str, size: int) -> CaseConfig:
    if axis == "layers":
        return replace(case, model=replace(case.model, layers=size))
    return replace(case, **{axis: size})


def _varied(case: CaseConfig, variant: str) -> CaseConfig:
    if variant == AS_ASKED:
        return case
    if variant == ONE_PIECE:
        return replace(case, loss_chunk=case.batch * case.seq_len)
    return replace(case, grad_checkpointing=not case.grad_checkpointing)


def _named(case: CaseConfig) -> CaseConfig:
    checkpointing = "on" if case.grad_checkpointing else "off"
    sizes = f"s{case.seq_len}_b{case.batch}_l{case.model.layers}"
    return replace(case, case_id=f"{sizes}_checkpointing_{checkpointing}_loss_{case.loss_chunk}")


def capacity_cases(values: Mapping[str, Value], backends: tuple[str, ...]) -> tuple[CaseConfig, ...]:
    """Return the cases of the sweep, each once."""
    return tuple({point.case.case_id: point.case for point in sweep_points(values)}.values())


def subject(values: Mapping[str, Value]) -> str:
    """Return what is predicted, in words: what a user brings by its name."""
    own = brought(values)
    if own is not None:
        return own.label
    return "dense attention" if values["attention"].value == DENSE else f"NSA, {values['backend'].value}"


def capacity_notices(values: Mapping[str, Value]) -> list[str]:
    """Return for what, and for which device, a capacity is predicted."""
    layers, seq_len, batch, gib = (values[name].value for name in ("layers", "seq_len", "batch", "device_gib"))
    sizes = f"{counted(layers, 'layer')}, S={seq_len:,}, batch {batch:,}"
    return [f"Predicted here: {subject(values)}; {sizes}, on a device of {gib:g} GiB."]


REQUEST = Request(
    notebook="capacity",
    parameters={
        "profile": Parameter(str, "whose sizes; needs no device", "checklist", ("checklist",)),
        "device_gib": Parameter(float, "memory of the device", 80.0, above=0),
        "seq_lens": Parameter(list, "lengths that are predicted, ascending", above=0),
        "batches": Parameter(list, "batches that are predicted, ascending", above=0),
        **SIZES,
        **BACKEND,
        **OWN_PARAMETERS,
        "device": Parameter(str, "whose memory, cuda or cpu", choices=DEVICES),
        "alloc_conf": MACHINE["alloc_conf"],
        "out_dir": RUN["out_dir"],
    },
    profiles={
        "checklist": {
            **SIZES_OF["checklist"],
            "seq_lens": (2048, 4096, 8192, 16384, 32768, 65536),
            "batches": (1, 4, 16, 64),
        }
    },
    cases=capacity_cases,
    notices=capacity_notices,
    imagined=True,
)
