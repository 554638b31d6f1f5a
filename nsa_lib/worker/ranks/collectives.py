"""Measure what ranks send each other: all-reduce, all-gather and reduce-scatter over sizes, with the sums checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import distributed

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.collectives import Transfer, bus_gb_per_s, transfers
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.worker.devices import DEVICES


def run_collectives(case: CaseConfig, heartbeat: Heartbeat) -> Sequence[dict[str, object]]:
    """Make every transfer of a case, a heartbeat each. Raises RuntimeError for one that delivers something wrong."""
    for step, transfer in enumerate(transfers(case.device), start=1):
        seconds = _timed(transfer, case)
        found = {"step_ms": 1000 * seconds, "bus_gb_per_s": bus_gb_per_s(transfer, seconds, case.ranks)}
        heartbeat.beat("step", step, **asdict(transfer), **found)
    return ()


def _timed(transfer: Transfer, case: CaseConfig) -> float:
    """Return the seconds that a transfer takes, all ranks having begun together."""
    ranks, rank = case.ranks, distributed.get_rank()
    share = int(transfer.size_mib * 2**20) // 4 // ranks  # elements of float32
    whole = torch.full((share * ranks,), float(rank + 1), device=case.device)
    part = torch.full((share,), float(rank + 1), device=case.device)
    wait = DEVICES[case.device].synchronize
    distributed.barrier()
    wait()
    began = time.perf_counter()
    CALLS[transfer.collective](whole, part)
    wait()
    seconds = time.perf_counter() - began
    _require_right(transfer, whole, part, ranks)
    return seconds


CALLS: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "all_reduce": lambda whole, part: distributed.all_reduce(whole),
    "all_gather": lambda whole, part: distributed.all_gather_into_tensor(whole, part),
    "reduce_scatter": lambda whole, part: distributed.reduce_scatter_tensor(part, whole),
}
"""From the tensor that all ranks have, and a rank's part of it."""


def _require_right(transfer: Transfer, whole: torch.Tensor, part: torch.Tensor, ranks: int) -> None:
    """Raise RuntimeError unless every element is what it must be: each rank sent its number, from 1."""
    total = torch.tensor(ranks * (ranks + 1) / 2, device=whole.device)
    if transfer.collective == "all_gather":
        right = torch.arange(1, ranks + 1, device=whole.device).repeat_interleave(len(part)).equal(whole.long())
    else:
        right = bool(((whole if transfer.collective == "all_reduce" else part) == total).all())
    if not right:
        raise RuntimeError(f"{transfer.collective} of {transfer.size_mib:g} MiB delivered something wrong")
