"""The checks of a preflight on the subject: one case runs one group of them, a heartbeat each.

`subject` compares with the float64 reference, looks for influence where none may be, and looks at gradients. `copying`
learns a copy task with each branch alone. `learning` trains the run's own model. None judges speed or memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from nsa_lib.contract.agenda import RIGHT, check_names
from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.subject.config import FUSED
from nsa_lib.worker.devices import DEVICES
from nsa_lib.worker.preflight.against_reference import (
    choice_agrees,
    fused_choice_agrees,
    layer_agrees,
    selected_agrees,
)
from nsa_lib.worker.preflight.copying import copying_checks
from nsa_lib.worker.preflight.finding import Finding
from nsa_lib.worker.preflight.gradients import checkpointing_agrees, executed_route, gradients_reach, rope_distance
from nsa_lib.worker.preflight.influence import future_influence, past_influence
from nsa_lib.worker.preflight.learning import learning_checks
from nsa_lib.worker.preflight.own import own_checks
from nsa_lib.worker.preflight.subject import PLAIN, Subject


def subject_checks(case: CaseConfig, alive: Callable[[], None]) -> Mapping[str, Callable[[], Finding]]:
    """Return the checks by name."""
    subject = Subject(case)
    checks: dict[str, Callable[[], Finding]] = {}
    for backend in case.backends:
        checks[f"selected_{backend}"] = partial(selected_agrees, subject, backend)
        checks[f"attention_{backend}"] = partial(layer_agrees, subject, backend)
        checks[f"future_{backend}"] = partial(future_influence, subject, backend)
        checks[f"past_slc_{backend}"] = partial(past_influence, subject, "slc", backend)
        checks[f"route_{backend}"] = partial(executed_route, subject, backend)
    shared = {"": PLAIN, f"_{FUSED}": FUSED} if FUSED in case.backends else {"": PLAIN}
    for own, backend in shared.items():
        checks[f"selection{own}"] = partial(fused_choice_agrees if own else choice_agrees, subject)
        for branch in ("cmp", "win"):
            checks[f"past_{branch}{own}"] = partial(past_influence, subject, branch, backend)
    others = {
        "rope_distance": rope_distance,
        "gradients": gradients_reach,
        "checkpointing": checkpointing_agrees,
    }
    return checks | {name: partial(check, subject) for name, check in others.items()}


GROUPS: Mapping[str, Callable[..., Mapping[str, Callable[[], Finding]]]] = {
    "subject": subject_checks,
    "copying": copying_checks,
    "learning": learning_checks,
    "own": own_checks,
    "own_copying": own_checks,
    "own_compiled": own_checks,
    **dict.fromkeys(RIGHT, own_checks),
}
"""By case: from the case, and a call that shows life, to its checks by name."""


def run_checks(case: CaseConfig, heartbeat: Heartbeat) -> Iterator[Mapping[str, object]]:
    """Run the checks of a case in their order, and yield the facts of each: `checks`, what was found so far, and more.

    A training inside a check beats at each of its steps, without a step number: life is shown, and the steps that are
    counted are the checks.
    """
    checks, found = GROUPS[case.case_id](case, lambda: heartbeat.beat("step")), []
    yield {"checks": [], "effective": DEVICES[case.device].settings()}
    owed = check_names(case.backends, brings=case.model.judged_as, compiled=case.compile) | RIGHT
    for number, name in enumerate(owed[case.case_id], start=1):
        began = time.perf_counter()
        finding = checks[name]()
        found.append(finding.record(name))
        yield {"checks": [*found], **finding.facts}
        heartbeat.beat("step", number, step_ms=1000 * (time.perf_counter() - began))
