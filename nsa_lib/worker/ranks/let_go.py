"""Wait after a collective over gloo until its threads no longer hold the tensors that it was given.

They let go a moment after the collective has returned, whenever they next get the interpreter's lock. A meter would
count a gathered block longer in some steps than in others, and at another peak. NCCL's tensors are let go by the thread
that waits for them. Not waited for: the copy that reduce-scatter over gloo makes for itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from unittest.mock import patch

import torch
from torch import distributed

COLLECTIVES = ("all_gather_single", "all_gather_into_tensor", "reduce_scatter_single", "reduce_scatter_tensor")
"""What FSDP2 calls, by the names of newer and older versions of torch."""

PATIENCE_S = 5.0
"""What is held for longer is held by something else, and counts."""


@contextmanager
def let_go_by_gloo() -> Iterator[None]:
    """While entered, return from FSDP2's collectives only once nobody but the caller holds their tensors."""
    with ExitStack() as changed:
        for name in COLLECTIVES:
            if hasattr(distributed, name):
                changed.enter_context(patch.object(distributed, name, _waiting(getattr(distributed, name))))
        yield


def _waiting(collective: Callable) -> Callable:
    @wraps(collective)
    def waits(*arguments: object, **more: object) -> object:
        given = [value for value in (*arguments, *more.values()) if isinstance(value, torch.Tensor)]
        before = _holders(given)
        work = collective(*arguments, **more)
        if work is None:  # it is done, not under way
            deadline = time.monotonic() + PATIENCE_S
            while _holders(given) > before and time.monotonic() < deadline:
                time.sleep(0)  # gives the interpreter's lock away
        return work

    return waits


def _holders(tensors: list[torch.Tensor]) -> int:
    """Return by how many the tensors are held, and their storages: gloo holds views of some."""
    return sum(tensor._use_count() + torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) for tensor in tensors)
