"""The prediction of a case: peaks by phase, what they consist of, and what each allocator setting reserves."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from torch._subclasses.fake_tensor import UnsupportedOperatorException

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_json
from nsa_lib.subject.config import ConfigError
from nsa_lib.subject.own.loading import users_traceback
from nsa_lib.worker.allocation_curve import allocation_curve
from nsa_lib.worker.prediction.record import PredictionError, Trace, record
from nsa_lib.worker.prediction.replay import replay

SCHEMA = 1

STATE = ("parameters", "gradients", "optimizer")


def predict(case: CaseConfig, *, compute_capability: str = "9.0") -> dict[str, object]:
    """Return the predicted memory of a case, in MiB and without a device.

    Args:
        case: of work `train`, `backward` or `snapshot`; its device says which memory is predicted.
        compute_capability: of the CUDA device that is meant. It decides the size of cuBLAS's workspace.

    Returns:
        `peak_alloc_mib` and `peak_reserved_mib` under the case's own allocator setting; `peak_alloc_<phase>_mib`;
        `state_mib` (parameters, gradients, optimizer) and `alloc_mib`, both between two steps; `terms`: for each phase
        what its peak consists of; `settings`: both peaks under each of ALLOCATOR_SETTINGS; of a `snapshot` also
        `allocations`, from one to the next over a step.

    Raises:
        PredictionError: for a case that cannot be predicted, or does not fit its `device_budget_gib`.
        ConfigError: for an allocator setting that cannot be simulated.
    """
    trace = _trace(_decisive(case), compute_capability)
    try:
        own = replay(trace, case.alloc_conf, capacity_mib=case.budget_mib)
    except MemoryError as error:
        raise PredictionError(f"out of memory on {case.device_budget_gib:g} GiB: {error}") from None
    settings = {name: replay(trace, conf) for name, conf in ALLOCATOR_SETTINGS.items()}
    return {
        "schema": SCHEMA,
        "peak_alloc_mib": own.peak.alloc_mib,
        "peak_reserved_mib": own.peak_reserved_mib,
        **{f"peak_alloc_{phase}_mib": peak.alloc_mib for phase, peak in own.phases.items()},
        "alloc_mib": own.held_mib,
        "state_mib": sum(own.held_terms_mib[term] for term in STATE),
        "terms": {phase: peak.terms_mib for phase, peak in own.phases.items()},
        "settings": {
            name: {"peak_alloc_mib": found.peak.alloc_mib, "peak_reserved_mib": found.peak_reserved_mib}
            for name, found in settings.items()
        },
        **({"allocations": allocation_curve(own.levels)} if case.work == "snapshot" else {}),
    }


def predict_to_file(case_file: Path, compute_capability: str) -> None:
    """Write prediction.json beside a case.json: what `predict` returns, or the reason why there is no prediction."""
    case = CaseConfig.from_json(case_file.read_text())
    try:
        found = predict(case, compute_capability=compute_capability)
    except (ConfigError, RuntimeError) as error:  # fake tensors lack an operator, or it asks for values
        found = {"schema": SCHEMA, "reason": _why_not(error, is_users=case.model.own is not None)}
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        if case.model.own is None:
            raise
        found = {"schema": SCHEMA, "reason": _does_not_run(error)}
    write_json(case_file.with_name("prediction.json"), found)


def _why_not(error: Exception, *, is_users: bool) -> str:
    """Return in one line why there is no prediction; of an operator that only knows values, how to teach it shapes."""
    operator = OPERATOR.search(str(error))
    if operator is None or not isinstance(error, NotImplementedError | UnsupportedOperatorException):
        is_told = isinstance(error, ConfigError | PredictionError)
        return (
            _does_not_run(error) if is_users and not is_told else (str(error).splitlines() or [type(error).__name__])[0]
        )
    return f"{operator[0]} knows no shapes without values; torch.library.register_fake gives it a fake implementation"


def _does_not_run(error: BaseException) -> str:
    """Return in one line why a user's code runs on no shapes alone, the place, and what would make it known."""
    frames = FRAME.findall(users_traceback(error))
    where = [frame for frame in frames if not TOOLS.search(frame[0])] or frames
    place = f" in {where[-1][2]}, {where[-1][0]}:{where[-1][1]}" if where else ""
    said = (str(error).strip().splitlines() or [""])[0]
    return f"it does not run on tensors without data: {type(error).__name__}: {said}{place}; {TAUGHT}"


FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')

TOOLS = re.compile(r"/(torch|triton)/")
"""Files that a user's code calls, in which nothing is hers to mend."""

TAUGHT = "as a torch.library.custom_op with register_fake it would"
"""What makes a kernel known to fake tensors that is launched from Python."""

OPERATOR = re.compile(r"\b\w+(::|\.)\w+(\.\w+)?\b")
"""The name of a dispatched operator."""


@lru_cache(maxsize=4)
def _trace(case: CaseConfig, compute_capability: str) -> Trace:
    return record(case, compute_capability=compute_capability)


def _decisive(case: CaseConfig) -> CaseConfig:
    """Return the case without what its allocations do not depend on, so that cases that differ in it share a trace."""
    told = {"case_id": "", "steps": 1, "warmup_steps": 0, "lr": 1e-3, "seed": 0, "alloc_conf": "", "data": "synthetic"}
    told["work"] = "train" if case.work == "snapshot" else case.work
    watched = ("detect_anomaly", "profile_operators", "look")
    return replace(case, **told, **dict.fromkeys(watched, False), fault="none", device_budget_gib=None)
