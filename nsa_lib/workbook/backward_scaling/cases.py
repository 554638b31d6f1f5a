"""What a backward scaling asks: its parameters, profiles and cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs.own import PARAMETERS as OWN_PARAMETERS
from nsa_lib.runs.parameters import SIZES, Parameter, Value
from nsa_lib.runs.request import Request
from nsa_lib.runs.training_case import training_case
from nsa_lib.workbook.profiles import BACKEND, FAULT, MACHINE, PROFILE, RUN, SIZES_OF, profiles

BACKWARD_WARMUP_STEPS = 3
"""Iterations at the start of a `backward` case that are not counted."""

TRAIN_LAYERS = (1, 3, 5)
"""Layers of the train steps from which the peak of a deeper model is predicted."""

MEMORY_STEPS = 5
"""Steps of a case that serves for memory alone; memory settles after the second."""


def scaling_cases(values: Mapping[str, Value], backends: tuple[str, ...]) -> tuple[CaseConfig, ...]:
    """Return the cases, the lengths first.

    `s<length>` is forward and backward at a length; `train_<layers>` the smoke's own train step with few layers;
    `backward_<setting>` the largest length and `smoke_<setting>` the smoke's train step under another
    allocator setting.
    """
    base = training_case(values)
    lengths = [_backward(base, length, base.steps) for length in values["seq_lens"].value]
    smoke = SIZES_OF[str(values["profile"].value)]
    train = replace(base, steps=MEMORY_STEPS, warmup_steps=2, grad_checkpointing=bool(smoke["grad_checkpointing"]))
    trains = [_with_layers(train, f"train_{layers}", layers) for layers in TRAIN_LAYERS]
    largest = _backward(base, lengths[-1].seq_len, MEMORY_STEPS - BACKWARD_WARMUP_STEPS)
    backwards = [
        replace(largest, case_id=f"backward_{name}", alloc_conf=setting)
        for name, setting in ALLOCATOR_SETTINGS.items()
        if setting != base.alloc_conf  # that one is the length itself
    ]
    whole = _with_layers(train, "smoke", int(smoke["layers"]))
    smokes = [
        replace(whole, case_id=f"smoke_{name}", alloc_conf=setting) for name, setting in ALLOCATOR_SETTINGS.items()
    ]
    return (*lengths, *trains, *backwards, *smokes)


def _backward(base: CaseConfig, length: int, counted: int) -> CaseConfig:
    steps = BACKWARD_WARMUP_STEPS + counted
    return replace(
        base, case_id=f"s{length}", work="backward", seq_len=length, steps=steps, warmup_steps=BACKWARD_WARMUP_STEPS,
        attest=True,
    )  # fmt: skip


def _with_layers(case: CaseConfig, case_id: str, layers: int) -> CaseConfig:
    return replace(case, case_id=case_id, model=replace(case.model, layers=layers))


REQUEST = Request(
    notebook="backward_scaling",
    parameters={
        **PROFILE,
        "seq_lens": Parameter(list, "lengths whose backward is measured, ascending", above=0),
        "steps": Parameter(
            int, f"counted iterations at each length, after {BACKWARD_WARMUP_STEPS} of warm-up", above=0
        ),
        **SIZES,
        **BACKEND,
        **OWN_PARAMETERS,
        **MACHINE,
        **RUN,
        **FAULT,
    },
    profiles=profiles(
        checklist={"layers": 5, "grad_checkpointing": False, "seq_lens": (128, 512, 1024, 2048), "steps": 10},
        laptop={"layers": 5, "grad_checkpointing": False, "seq_lens": (64, 128, 256, 512), "steps": 5},
    ),
    cases=scaling_cases,
    predicted=True,
)
