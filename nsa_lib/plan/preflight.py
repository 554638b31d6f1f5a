"""The cases of a preflight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nsa_lib.check_names import check_names
from nsa_lib.config import CaseConfig
from nsa_lib.plan.training import training_case
from nsa_lib.profiles import Value


def preflight_cases(values: Mapping[str, Value], backends: Sequence[str]) -> tuple[CaseConfig, ...]:
    """Return the cases, one for each group of checks; their steps are the checks."""
    checks = training_case({**values, "steps": Value("steps", 1, "default", None)})
    return tuple(
        replace(checks, case_id=group, work="checks", steps=len(names), warmup_steps=0, backends=backends)
        for group, names in check_names(backends).items()
    )
