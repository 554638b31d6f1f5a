"""How launches of kernels become operators of torch, so that compilers, profilers and fake tensors know them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch

_LIBRARY = torch.library.Library("nsa", "DEF")


def op(schema: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function that launches kernels the operator `nsa::<schema>`.

    It writes into the tensors that its schema marks as mutated and allocates none, so whoever calls it owns all memory
    and a meter sees it; on fake tensors there is nothing to do.
    """

    def declare(launch: Callable[..., None]) -> Callable[..., None]:
        name = schema.partition("(")[0]

        @wraps(launch)
        def run(q: torch.Tensor, *others: object) -> None:
            if not q.is_cuda:
                _require_interpreter(q)
            launch(q, *others)

        _LIBRARY.define(f"{schema} -> ()")
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"nsa::{name}", lambda *arguments: None, lib=_LIBRARY)
        return getattr(torch.ops.nsa, name).default

    return declare


def _require_interpreter(x: torch.Tensor) -> None:
    """Raise ValueError unless Triton's interpreter, which tests use, stands in for a GPU."""
    import triton

    from nsa_lib.subject.attention.fused.kernels.tile import attend

    if isinstance(attend, triton.JITFunction):
        raise ValueError(f"backend='fused': a tensor on {x.device}, accepts cuda")
