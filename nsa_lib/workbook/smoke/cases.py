"""What a smoke asks: its parameters, profiles and cases, and the laptop's memory limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.contract.case import JUDGED_STEPS, SNAPSHOT_STEPS, CaseConfig
from nsa_lib.contract.fingerprint import REPEATED_STEPS, why_not_deterministic
from nsa_lib.runs.own import PARAMETERS as OWN_PARAMETERS
from nsa_lib.runs.parameters import SIZES, Parameter, Value
from nsa_lib.runs.request import Request
from nsa_lib.runs.training_case import training_case
from nsa_lib.workbook.profiles import (
    BACKEND,
    COMPILE,
    FAULT_AT,
    MACHINE,
    MEMBER,
    PROFILE_OR_PROLOG,
    PROLOG,
    RUN,
    SIZES_OF,
    profiles,
)

ANOMALY_STEPS = 10

HOT = "hot"
"""The case that takes the first steps of the training again, when it has heated the GPU."""

OF_PROLOG = {"layers": 4, "steps": JUDGED_STEPS, "reserved_limit_mib": 70000.0, "total_timeout_s": 120.0}
"""What a smoke of two minutes does besides the checklist's; what still runs then is ended."""

DENSE_STEPS = 30

PROFILER_STEPS = 53
"""Long enough for three recorded steps right after warm-up and three that are forty steps later."""

LAPTOP_KNOWN_RESERVED_MIB = {"masked": 52.0, "gather": 50.0, "packed": 50.0}
"""Peak reserved memory of the laptop smoke on a CPU, simulated and so the same on every machine."""

LAPTOP_HEADROOM = 1.25
"""The laptop's limit over its known peak."""


def smoke_cases(values: Mapping[str, Value], backends: tuple[str, ...]) -> tuple[CaseConfig, ...]:
    """Return the cases of a smoke: the training, its first steps again, ten under anomaly detection, more on a GPU.

    On a CPU the operators are counted by the memory tracker in the training case, and its speed says nothing.
    """
    training = training_case(values)
    on_gpu = training.device == "cuda"
    counted = bool(values["profiler"].value) and not on_gpu
    look = training.model.attention != "dense" and training.model.brings != "model"
    main = replace(training, fingerprint=True)
    cases = [replace(main, attest=True, show_fresh=True, profile_operators=counted, look=look)]
    if not why_not_deterministic(training):  # at once, while the GPU is hot
        steps = min(REPEATED_STEPS, training.steps)
        cases.append(replace(main, case_id=HOT, work="repeat", repeats=training.case_id, steps=steps))
    if values["anomaly"].value:
        cases.append(replace(training, case_id="anomaly", steps=ANOMALY_STEPS, detect_anomaly=True, compile=False))
    if values["profiler"].value and on_gpu:
        cases.append(replace(training, case_id="profiler", steps=PROFILER_STEPS, profile_operators=True))
    if on_gpu and training.model.brings != "model":  # beside that no yardstick has its sizes
        dense = training.model.contestant("dense")
        cases.append(replace(training, case_id="dense", model=dense, steps=DENSE_STEPS))
    if values["memory_snapshot"].value:
        cases.append(snapshot_case(training))
    return tuple(cases)


def snapshot_case(training: CaseConfig) -> CaseConfig:
    """Return the case that records a step of a training from allocation to allocation, and judges nothing."""
    told = {"case_id": "snapshot", "work": "snapshot", "steps": SNAPSHOT_STEPS, "warmup_steps": 0, "fault": "none"}
    return replace(training, **told, compile=False)


def with_laptop_limit(values: dict[str, Value]) -> dict[str, Value]:
    """Add the laptop's memory limit where its peak is known: on a CPU, at the profile's own sizes."""
    limit, own = values["reserved_limit_mib"], SIZES_OF["laptop"]
    own_sizes = all(values[name].value == own[name] for name in (*SIZES, "device", "alloc_conf"))
    ours = (values["attention"].value, values["model"].value) == ("nsa", "tinylm")
    known = LAPTOP_KNOWN_RESERVED_MIB.get(str(values["backend"].value)) if ours else None
    if values["profile"].value == "laptop" and limit.value is None and own_sizes and known is not None:
        limit = Value("reserved_limit_mib", known * LAPTOP_HEADROOM, "profile", limit.checklist)
    return {**values, "reserved_limit_mib": limit}


def smoke_notices(values: Mapping[str, Value]) -> list[str]:
    """Say before the run that it is too short to be judged."""
    steps = values["steps"].value
    if steps >= JUDGED_STEPS:
        return []
    return [
        f"steps={steps}: a smoke needs at least {JUDGED_STEPS} steps to be judged "
        "(10 of warm-up and the checklist's 50); this run will end INCOMPLETE."
    ]


REQUEST = Request(
    notebook="smoke",
    parameters={
        **PROFILE_OR_PROLOG,
        "steps": Parameter(int, f"training steps; fewer than {JUDGED_STEPS} cannot be judged", above=0),
        **SIZES,
        "data": Parameter(str, "synthetic, or the path of a text file read as bytes", "synthetic"),
        **BACKEND,
        **OWN_PARAMETERS,
        **MACHINE,
        **COMPILE,
        "anomaly": Parameter(bool, "ten steps under anomaly detection", True),
        "profiler": Parameter(bool, "count operators early and late", True),
        "memory_snapshot": Parameter(
            bool, "record a step's allocations, in a case of its own that is not judged", False
        ),
        "reserved_limit_mib": Parameter(float, "limit of the peak reserved memory", above=0),
        "fingerprint": Parameter(str, "kept bits to compare with: a file of `nsa_lib keep`, or a folder of them"),
        **RUN,
        **MEMBER,
        **FAULT_AT,
    },
    profiles={
        **profiles(checklist={"steps": 100, "reserved_limit_mib": 70000.0}, laptop={"steps": 100}),
        PROLOG: SIZES_OF["checklist"] | OF_PROLOG,
    },
    cases=smoke_cases,
    derive=with_laptop_limit,
    notices=smoke_notices,
    predicted=True,
)
