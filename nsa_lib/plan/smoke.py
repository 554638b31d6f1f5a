"""The cases of a smoke."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.config import CaseConfig
from nsa_lib.plan.training import training_case
from nsa_lib.profiles import Value

ANOMALY_STEPS = 10
DENSE_STEPS = 30
PROFILER_STEPS = 53
"""Long enough for three recorded steps right after warm-up and three that are forty steps later."""


def smoke_cases(values: Mapping[str, Value]) -> tuple[CaseConfig, ...]:
    """Return the cases of a smoke: the training, ten steps of anomaly detection, on a GPU a profile and the yardstick.

    On a CPU the operators are counted by the memory tracker in the training case, and its speed says nothing.
    """
    training = training_case(values)
    on_gpu = training.device == "cuda"
    counted = bool(values["profiler"].value) and not on_gpu
    cases = [replace(training, check_attention=True, profile_operators=counted, look=True)]
    if values["anomaly"].value:
        cases.append(replace(training, case_id="anomaly", steps=ANOMALY_STEPS, detect_anomaly=True, compile=False))
    if values["profiler"].value and on_gpu:
        cases.append(replace(training, case_id="profiler", steps=PROFILER_STEPS, profile_operators=True))
    if on_gpu:
        dense = replace(training.model, attention="dense")
        cases.append(replace(training, case_id="dense", model=dense, steps=DENSE_STEPS))
    return tuple(cases)
