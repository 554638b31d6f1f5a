"""What ranks share, on fake tensors: DDP's buckets and FSDP2's shards as torch makes them, with nobody to talk to.

One rank of a group that sends nothing takes the step. What differs from a real group, on purpose: parameters are not
compared and copied at the start, and DDP keeps its first assignment of gradients to buckets, since both need values.
The memory is the same: buckets hold the gradients, however they are assigned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.nn.parallel import distributed as ddp_module

try:
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
except ImportError:  # torch 2.5
    from torch.distributed._composable.fsdp._fsdp_param_group import FSDPParamGroup
from torch.utils._python_dispatch import _disable_current_modes

from nsa_lib.contract.case import DDP, CaseConfig
from nsa_lib.subject import distributed as strategies
from nsa_lib.subject.model import TinyLM

COMMUNICATES = ("unshard", "wait_for_unshard", "post_backward")
"""Of FSDP2's group of parameters, what makes the buffers of all-gather and reduce-scatter."""


@contextmanager
def rank_of_nobody(case: CaseConfig, part: Callable[[bool], object]) -> Iterator[Callable[[TinyLM], nn.Module]]:
    """Give what shares a model among the ranks of a case, for one of them; enter it before fake tensors.

    Args:
        case: with a strategy.
        part: told True while buffers of collectives are made, and False after.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend

    distributed.init_process_group("fake", rank=0, world_size=case.ranks, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (case.ranks,))  # asks for values
        with ExitStack() as changed:
            for owner, name, new in _changes(part, mesh):
                changed.enter_context(patch.object(owner, name, new))
            yield lambda model: _shared(model, case)
    finally:
        distributed.destroy_process_group()


def _shared(model: TinyLM, case: CaseConfig) -> nn.Module:
    loss_of = strategies.STRATEGIES[case.strategy](model, case.loss_chunk)
    if case.strategy == DDP:
        loss_of.register_comm_hook(None, _as_it_is)
        loss_of.reducer = _KeepsBuckets(loss_of.reducer)
    return loss_of


def _as_it_is(state, bucket):
    """Return a bucket that nobody averages; a real group does it in place. torch refuses annotations as texts."""
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class _KeepsBuckets:
    """DDP's reducer without the second assignment of gradients to buckets."""

    def __init__(self, reducer: object):
        self._reducer = reducer

    def __getattr__(self, name: str) -> object:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


def _changes(part: Callable[[bool], object], mesh: object) -> Iterator[tuple[object, str, object]]:
    """Yield what is replaced: owner, name, and what takes its place."""
    yield strategies, "init_device_mesh", lambda *_, **__: mesh
    for name in ("_verify_param_shape_across_processes", "_sync_module_states"):
        yield ddp_module, name, lambda *_, **__: None
    # A sharded tensor derives shapes on fake tensors of its own, of the whole size; they are no memory.
    shapes = ShardingPropagator._propagate_tensor_meta_non_cached

    def aside(*arguments: object) -> object:
        with _disable_current_modes():
            return shapes(*arguments)

    yield ShardingPropagator, "_propagate_tensor_meta_non_cached", aside
    for name in COMMUNICATES:
        yield FSDPParamGroup, name, _told(getattr(FSDPParamGroup, name), part)


def _told(method: Callable, part: Callable[[bool], object]) -> Callable:
    def told(*arguments: object, **more: object) -> object:
        part(True)
        try:
            return method(*arguments, **more)
        finally:
            part(False)

    return told
