"""Plant a seeded fault in the process of a case, from outside: the code on trial stays as it is and knows nothing.

`with planted(case): ...` replaces what the case calls by something faulty and puts it back. `contract.faults` says what
each fault is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from nsa_lib.contract.case import CaseConfig
from nsa_lib.worker.faults import of_code, of_run
from nsa_lib.worker.faults.replacing import from_step


def planted(case: CaseConfig) -> AbstractContextManager[None]:
    """Return a context in which the case's fault is in force, or comes into force at the moment that the fault names.

    Raises KeyError for an unknown fault or moment.
    """
    name, _, moment = case.fault.partition("@")
    plant = partial(PLANTS[name], case)
    if moment in ("", "build"):
        return plant()
    return from_step({"first": 1, "last": case.steps}[moment], plant)


PLANTS: dict[str, Callable[[CaseConfig], AbstractContextManager[None]]] = {
    "none": lambda case: nullcontext(),
    "leak_12": partial(of_run.leak, share=0.12),
    "leak_30": partial(of_run.leak, share=0.30),
    "pool_creep": of_run.pool_creep,
    "nan_loss": of_code.nan_loss,
    "inf_gradient": of_code.inf_gradient,
    "hang_forward": of_run.hang_forward,
    "hang_gil": of_run.hang_gil,
    "sigkill": of_run.sigkill,
    "segfault": of_run.segfault,
    "oom": of_run.oom,
    "operator_growth": of_code.operator_growth,
    "growing_shapes": of_code.growing_shapes,
    "wrong_backend": of_code.wrong_backend,
    "first_key": of_code.first_key,
    "future_leak": of_code.future_leak,
    "late_binding": of_code.late_binding,
    "dead_parameter": of_code.dead_parameter,
    "unshifted_labels": of_code.unshifted_labels,
    "silent_heartbeat": of_run.silent_heartbeat,
    "torn_heartbeat": of_run.torn_heartbeat,
    "disk_full": of_run.disk_full,
}
"""How each fault of `contract.faults` is planted."""
