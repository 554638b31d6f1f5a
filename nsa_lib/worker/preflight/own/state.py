"""What a module keeps from call to call: parameters, buffers, counters, hooks; and what its code keeps for all."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sized
from types import ModuleType

import torch
from torch import Tensor, nn

from nsa_lib.subject.config import Own
from nsa_lib.subject.own.loading import load

LENGTH = "length of "
"""Begins the name of what was counted."""

NOT_HERS = ("torch", "nsa_lib", "builtins")
"""Packages whose classes and files keep nothing of a user's."""


def state_of(module: nn.Module) -> dict[str, object]:
    """Return parameters, buffers, counters and other attributes of a module and its parts, with the length of what has
    one, hooks among them."""
    known, found = {*vars(nn.Module()), "training"}, {}
    for path, part in module.named_modules():
        path = path.removeprefix("module").removeprefix(".")
        for name, value in part.named_parameters(recurse=False):
            found[f"{LENGTH}hooks of {path}.{name}"] = len(value._backward_hooks or ()) + len(
                value._post_accumulate_grad_hooks or ()
            )
        own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False), *vars(part).items())
        for name, value in own:
            if (name in known and not name.endswith("_hooks")) or "checkpoint" in name:
                continue
            if isinstance(value, Tensor):
                found[f"{path}.{name}"] = value.detach().clone()
            elif isinstance(value, bool | int | float | str | None):
                found[f"{path}.{name}"] = value
            elif isinstance(value, Sized):
                found[f"{LENGTH}{path}.{name}"] = len(value)
    return found


def shared_state_of(module: nn.Module, own: Own | None) -> dict[str, float]:
    """Return the numbers and the lengths of containers that her classes and the files they stand in keep."""
    found: dict[str, float] = {}
    for path, keeper in _keepers(module, own):
        for name, value in vars(keeper).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[f"{path}.{name}"] = value
            elif isinstance(value, list | dict | set | deque) and not name.startswith("__"):
                found[f"{LENGTH}{path}.{name}"] = len(value)
    return found


def _keepers(module: nn.Module, own: Own | None) -> Iterator[tuple[str, type | ModuleType]]:
    kinds = {kind for part in module.modules() for kind in type(part).__mro__}
    places = {kind.__module__ for kind in kinds} | ({getattr(load(own), "__module__", "")} if own else set())
    yield from ((kind.__qualname__, kind) for kind in kinds if _is_hers(kind.__module__))
    yield from ((place, sys.modules[place]) for place in places if _is_hers(place) and place in sys.modules)


def _is_hers(place: str) -> bool:
    return place.partition(".")[0] not in NOT_HERS


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Return the names of what is not the same."""
    return [name for name in sorted({*before, *after}) if not _equal(before.get(name), after.get(name))]


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and one == other
