"""The cases of a capacity: train steps of few layers whose memory is predicted, at each length and batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.contract.case import DEVICES, CaseConfig
from nsa_lib.runs.parameters import SIZES, Parameter, Value
from nsa_lib.runs.request import Request
from nsa_lib.runs.training_case import training_case
from nsa_lib.workbook.profiles import BACKEND, MACHINE, RUN, SIZES_OF

DEPTHS = (2, 4)
"""Layers that are predicted; every further layer adds what the last ones did."""

VARIANTS = ("as asked", "other checkpointing", "loss in one piece")


def capacity_cases(values: Mapping[str, Value], backends: tuple[str, ...]) -> tuple[CaseConfig, ...]:
    """Return the cases: every length in every variant, then every batch, each with DEPTHS layers.

    `other checkpointing` is without where it was asked for, and with where not; `loss in one piece` makes all logits at
    once.
    """
    unused = {"steps": 2, "lr": 3e-4, "seed": 0, "fault": "none", "device_budget_gib": None}
    base = training_case({**values, **{name: Value(name, value, "default", None) for name, value in unused.items()}})
    lengths, batches = values["seq_lens"].value, values["batches"].value
    points = [replace(base, seq_len=length) for length in sorted({*lengths, base.seq_len})]
    swept = [_varied(point, variant) for variant in VARIANTS for point in points]
    swept += [replace(base, batch=batch) for batch in sorted({*batches, base.batch} - {base.batch})]
    cases = [replace(case, model=replace(case.model, layers=depth)) for case in swept for depth in DEPTHS]
    return tuple(replace(case, case_id=case_name(case)) for case in cases)


def _varied(case: CaseConfig, variant: str) -> CaseConfig:
    if variant == "other checkpointing":
        return replace(case, grad_checkpointing=not case.grad_checkpointing)
    return replace(case, loss_chunk=case.batch * case.seq_len) if variant == "loss in one piece" else case


def case_name(case: CaseConfig) -> str:
    """Return the name of a case, made of what is swept."""
    checkpointing = "on" if case.grad_checkpointing else "off"
    sizes = f"s{case.seq_len}_b{case.batch}_l{case.model.layers}"
    return f"{sizes}_checkpointing_{checkpointing}_loss_{case.loss_chunk}"


REQUEST = Request(
    notebook="capacity",
    parameters={
        "profile": Parameter(str, "whose sizes; needs no device", "checklist", ("checklist",)),
        "device_gib": Parameter(float, "memory of the device", 80.0, above=0),
        "seq_lens": Parameter(list, "lengths that are predicted, ascending", above=0),
        "batches": Parameter(list, "batches that are predicted, ascending", above=0),
        **SIZES,
        **BACKEND,
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
    imagined=True,
)
