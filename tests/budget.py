"""What the tests hold an implementation to: `worker.preflight.error_budget`, and how an error is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nsa_lib.worker.preflight.error_budget import (
    COMPRESSION_ROUNDINGS,
    attention,
    compression,
    module,
    rotation,
    steps,
    unit,
)

__all__ = [
    "COMPRESSION_ROUNDINGS",
    "attention",
    "compression",
    "module",
    "rotation",
    "steps",
    "unit",
]


def probability_bound(q: Tensor, k: Tensor, *, scale: float, inherited: float) -> float:
    """Return the relative error that no single probability of softmax(scale * q . k) exceeds, in float32.

    The worst case, because a choice hangs on single entries: every error of a logit in one direction, |q| and |k| at
    their largest. `inherited` is the relative error of each entry of q and k.
    """
    size = scale * float(q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max())
    float32 = unit(torch.float32)
    logit_error = size * (2 * inherited + (q.shape[-1] + 2) * float32)
    return math.expm1(2 * logit_error) + (k.shape[-2] + 2) * float32


def sample(*shape: int) -> Tensor:
    """Return normal numbers in float64 that bfloat16 holds exactly, so that one reference judges every dtype."""
    return torch.randn(shape).bfloat16().double()


def error(out: Tensor, reference: Tensor, *, cancelled: float = 0.0) -> float:
    """Return the relative error of a tensor: the larger of that of its norm and that of its largest entry.

    A reference that is exactly zero has no relative error. `cancelled` is then the norm of the terms that cancel in it,
    such as those in the gradient of a query that sees one key; where nothing cancels, zero must be met exactly.
    """
    out, reference = out.detach().double(), reference.detach().double()
    assert out.shape == reference.shape, f"shape {tuple(out.shape)}, expected {tuple(reference.shape)}"
    difference = out - reference
    if not difference.any():
        return 0.0
    if not reference.any():
        return float(difference.norm()) / cancelled if cancelled else math.inf
    norm = difference.norm() / reference.norm()
    largest = difference.abs().max() / reference.abs().max()
    worst = float(torch.maximum(norm, largest))
    return math.inf if math.isnan(worst) else worst


def with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """Return the function's output, then the gradients of sum(output * weight) by each input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    assert out.isfinite().all(), "the output is not finite"
    gradients = torch.autograd.grad(out, leaves, weight.to(out.dtype), allow_unused=True, materialize_grads=True)
    return [out.detach(), *gradients]


def assert_attention(got: Sequence[Tensor], exact: Sequence[Tensor], inputs, weight, *, keys: int, scale=None) -> None:
    """Hold the output and the gradients of q, k, v of one attention against the reference's, all of one dtype."""
    q, k, v = inputs
    allowed = attention(q, k, keys=keys, scale=scale)
    cancelled = float(weight.double().norm() * v.double().norm() * (q.double().norm() + k.double().norm()))
    for name, mine, true in zip(("output", "dq", "dk", "dv"), got, exact, strict=True):
        assert mine.dtype == q.dtype, f"{name}: {mine.dtype}, expected {q.dtype}"
        limit = allowed.output if name == "output" else allowed.gradient
        found = error(mine, true, cancelled=cancelled)
        assert found <= limit, f"{name}: relative error {found:.2e}, budget {limit:.2e}"
