"""The group of ranks that a process belongs to, as torchrun's environment tells torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from nsa_lib.contract.case import CaseConfig

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""What carries the collectives, by device."""


@contextmanager
def joined(case: CaseConfig) -> Iterator[int]:
    """Join the other ranks of a case, on a device of this rank's own; give its rank, and leave after the last step."""
    own = {}
    if case.device == "cuda":
        device = torch.device("cuda", distributed.get_node_local_rank())
        torch.cuda.set_device(device)
        own = {"device_id": device}
    distributed.init_process_group(BACKENDS[case.device], **own)
    yield distributed.get_rank()
    distributed.barrier()  # a rank that leaves while others still send breaks their connections
    distributed.destroy_process_group()


def rank_and_count() -> tuple[int, int]:
    """Return this process's rank and how many there are: 0 of 1 for a process that torchrun did not start."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
