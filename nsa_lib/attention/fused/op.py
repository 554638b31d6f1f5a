"""How a kernel becomes an operator of torch, so that compilers, profilers and fake tensors know it."""

from __future__ import annotations

from collections.abc import Callable

import torch

_LIBRARY = torch.library.Library("nsa", "DEF")


def op(schema: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function that launches kernels the operator `nsa::<schema>`.

    It writes into the tensors that its schema marks as mutated and allocates none, so whoever calls it owns all memory
    and a meter sees it; on fake tensors there is nothing to do.
    """

    def declare(launch: Callable[..., None]) -> Callable[..., None]:
        name = schema.partition("(")[0]
        _LIBRARY.define(f"{schema} -> ()")
        _LIBRARY.impl(name, launch, "CompositeExplicitAutograd")
        torch.library.register_fake(f"nsa::{name}", lambda *arguments: None, lib=_LIBRARY)
        return getattr(torch.ops.nsa, name).default

    return declare
