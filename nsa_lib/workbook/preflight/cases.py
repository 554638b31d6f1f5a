"""What a preflight asks: its parameters, profiles and cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nsa_lib.contract.agenda import check_names
from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs.own import PARAMETERS as OWN_PARAMETERS
from nsa_lib.runs.parameters import SIZES, Parameter, Value
from nsa_lib.runs.request import Request
from nsa_lib.runs.training_case import training_case
from nsa_lib.subject.config import OWN, ConfigError
from nsa_lib.workbook.profiles import BACKEND, FAULT, MACHINE, PROFILE, RUN, profiles

FULL = "full"
"""The case that takes steps at the run's own size."""

FULL_STEPS = 3
"""The first, one on the way and the last are recorded."""


def preflight_cases(values: Mapping[str, Value], backends: Sequence[str]) -> tuple[CaseConfig, ...]:
    """Return the cases: one for each group of checks, whose steps are the checks, and `full`.

    The checks are made where the float64 loops take seconds, at short lengths. `full` takes a few train steps at the
    run's own length, batch and layers, of which sampled rows are held against the reference.
    """
    compiled = bool(values["compile"].value)
    ours = {"steps": Value("steps", 1, "default", None), "compile": Value("compile", False, "default", None)}
    checks = training_case({**values, **ours})
    if compiled and checks.model.judged_as is None:
        raise ConfigError("compile=True: only yours is judged here; the smoke judges ours under torch.compile")
    if checks.model.brings == "backend":
        backends = (OWN,)
    full = replace(checks, case_id=FULL, steps=FULL_STEPS, warmup_steps=1, attest=True)
    checks = replace(checks, work="checks", warmup_steps=0, backends=backends, compile=compiled)
    groups = check_names(backends, brings=checks.model.judged_as, compiled=compiled)
    return (*(replace(checks, case_id=group, steps=len(names)) for group, names in groups.items()), full)


COMPILE = {"compile": Parameter(bool, "hold what is yours against itself under torch.compile", False)}

REQUEST = Request(
    notebook="preflight",
    parameters={**PROFILE, **SIZES, **BACKEND, **OWN_PARAMETERS, **COMPILE, **MACHINE, **FAULT, **RUN},
    profiles=profiles(checklist={}, laptop={}),
    cases=preflight_cases,
    records_room=True,
)
