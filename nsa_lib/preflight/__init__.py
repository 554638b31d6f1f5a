"""The checks of a preflight on the subject: one case runs one group of them, a heartbeat each.

`subject` compares with the float64 reference, looks for influence where none may be, and at gradients; `copying` learns
a copy task with each branch alone; `learning` trains the run's own model. Speed and memory are not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from nsa_lib.check_names import check_names
from nsa_lib.config import CaseConfig
from nsa_lib.preflight.copying import copying_checks
from nsa_lib.preflight.finding import Finding
from nsa_lib.preflight.learning import learning_checks
from nsa_lib.preflight.subject import subject_checks
from nsa_lib.telemetry import Heartbeat

GROUPS: Mapping[str, Callable[..., Mapping[str, Callable[[], Finding]]]] = {
    "subject": subject_checks,
    "copying": copying_checks,
    "learning": learning_checks,
}
"""By case: from the case, and a call that shows life, to its checks by name."""


def run_checks(case: CaseConfig, heartbeat: Heartbeat, facts: dict[str, object]) -> None:
    """Run the checks of a case in their order; `facts["checks"]` holds what was found so far.

    A training inside a check beats at each of its steps, without a step number: life is shown, and the steps that are
    counted are the checks.
    """
    found: list[dict[str, object]] = []
    facts["checks"] = found
    checks = GROUPS[case.case_id](case, facts, lambda: heartbeat.beat("step"))
    for number, name in enumerate(check_names(case.backends)[case.case_id], start=1):
        began = time.perf_counter()
        found.append(checks[name]().record(name))
        heartbeat.beat("step", number, step_ms=1000 * (time.perf_counter() - began))
