"""The cases of a backward scaling: lengths, train steps of few layers, other allocator settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.config import ALLOCATOR_SETTINGS, BACKWARD_WARMUP_STEPS, TRAIN_LAYERS, CaseConfig
from nsa_lib.plan.training import training_case
from nsa_lib.profiles import PROFILES, Value

MEMORY_STEPS = 5
"""Steps of a case of which only memory is read: it settles after the second."""


def scaling_cases(values: Mapping[str, Value]) -> tuple[CaseConfig, ...]:
    """Return the cases, the lengths first.

    `s<length>` is forward and backward at a length; `train_<layers>` the smoke's own train step with few layers;
    `backward_<setting>` the largest length and `smoke_<setting>` the smoke's train step under another
    allocator setting.
    """
    base = training_case(values)
    lengths = [_backward(base, length, base.steps) for length in values["seq_lens"].value]
    smoke = PROFILES["smoke"][str(values["profile"].value)]
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
        base, case_id=f"s{length}", work="backward", seq_len=length, steps=steps, warmup_steps=BACKWARD_WARMUP_STEPS
    )


def _with_layers(case: CaseConfig, case_id: str, layers: int) -> CaseConfig:
    return replace(case, case_id=case_id, model=replace(case.model, layers=layers))
