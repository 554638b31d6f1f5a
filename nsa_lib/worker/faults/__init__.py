"""Plant a seeded fault in the process of a case, from outside: the code on trial stays as it is and knows nothing.

`with planted(case): ...` replaces what the case calls by something faulty and puts it back. `contract.faults` says what
each fault is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.faults import FAULT_RANK
from nsa_lib.worker.faults import of_bits, of_code, of_members, of_ranks, of_run
from nsa_lib.worker.faults.replacing import from_step
from nsa_lib.worker.ranks.group import rank_and_count


def planted(case: CaseConfig) -> AbstractContextManager[None]:
    """Return a context in which the case's fault is in force, or comes into force at the moment that the fault names.

    Of several ranks only FAULT_RANK has it. Raises KeyError for an unknown fault or moment.
    """
    name, _, moment = case.fault.partition("@")
    rank, count = rank_and_count()
    if count > 1 and rank != FAULT_RANK and name not in MADE_BY_ALL:
        return nullcontext()
    plant = partial(PLANTS[name], case)
    if moment in ("", "build"):
        return plant()
    return from_step({"first": 1, "last": case.steps}[moment], plant)


MADE_BY_ALL = ("hang_collective",)
"""Faults that all ranks must prepare, though one alone has them."""

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
    "bit_once": of_bits.bit_once,
    "stuck_bit": of_bits.stuck_bit,
    "unordered_sum": of_bits.unordered_sum,
    "hang_collective": of_ranks.hang_collective,
    "mismatched_shapes": of_ranks.mismatched_shapes,
    "slow_rank": of_ranks.slow_rank,
    "flipped_bit": of_ranks.flipped_bit,
    "other_data": of_ranks.other_data,
    "other_seed": of_ranks.other_seed,
    "wrong_bit": of_members.wrong_bit,
    "slow_gpu": of_members.slow_gpu,
}
"""How each fault of `contract.faults` is planted."""
