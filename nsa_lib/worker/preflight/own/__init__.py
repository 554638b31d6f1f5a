"""The checks of what a user brings: what any causal attention or model owes, judged without a reference.

`trial` makes it, runs it and edits its input. `reach` asks what a token changes, `numbers` and `derivative` whether
outputs and gradients are right, `gradients` whether they reach all, `checkpointing` and `kept` what a call leaves
behind, `copying` whether it learns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject.own.loading import reason, users_traceback
from nsa_lib.worker.preflight.finding import Finding
from nsa_lib.worker.preflight.own import checkpointing, compiling, copying, derivative, gradients, kept, numbers, reach
from nsa_lib.worker.preflight.own.trial import Trial, trial_of

CHECKS: Mapping[str, Callable[[Trial], Finding]] = {
    "future": reach.future,
    "others": reach.others,
    "self_error": numbers.self_error,
    "finite_difference": derivative.finite_difference,
    "same_bits": numbers.same_bits,
    "checkpointing": checkpointing.checkpointing,
    "gradients": gradients.gradients,
    "inputs": kept.inputs,
    "large": numbers.large,
    "empty": numbers.empty,
    "reference": numbers.reference,
    "copy_near": copying.near,
    "copy_far": copying.far,
    "compiled": compiling.compiled,
}
"""The checks by the names of `contract.agenda`."""


def own_checks(case: CaseConfig, alive: Callable[[], None]) -> Mapping[str, Callable[[], Finding]]:
    """Return the checks by name."""
    trial = trial_of(case, alive)
    return {name: partial(found_by, check, trial) for name, check in CHECKS.items()}


def found_by(check: Callable[[Trial], Finding], trial: Trial) -> Finding:
    """Return what a check finds; code on trial that raises has failed it."""
    try:
        return check(trial)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  a user's code may raise anything; it fails this check
        own = users_traceback(error)
        where = [line.strip() for line in own.splitlines() if line.lstrip().startswith("File ")][-1:]
        return Finding("raises", "returns", "", "; ".join([reason(error), *where]), False, user_traceback=own)
