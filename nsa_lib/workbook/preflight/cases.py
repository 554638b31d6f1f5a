"""What a preflight asks: its parameters, profiles and cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nsa_lib.contract.agenda import check_names
from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs.parameters import SIZES, Value
from nsa_lib.runs.request import Request
from nsa_lib.runs.training_case import training_case
from nsa_lib.workbook.profiles import BACKEND, FAULT, MACHINE, PROFILE, RUN, profiles


def preflight_cases(values: Mapping[str, Value], backends: Sequence[str]) -> tuple[CaseConfig, ...]:
    """Return the cases, one for each group of checks; their steps are the checks."""
    checks = training_case({**values, "steps": Value("steps", 1, "default", None)})
    return tuple(
        replace(checks, case_id=group, work="checks", steps=len(names), warmup_steps=0, backends=backends)
        for group, names in check_names(backends).items()
    )


REQUEST = Request(
    notebook="preflight",
    parameters={**PROFILE, **SIZES, **BACKEND, **MACHINE, **FAULT, **RUN},
    profiles=profiles(checklist={}, laptop={}),
    cases=preflight_cases,
    records_room=True,
)
