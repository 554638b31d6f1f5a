"""Checks of the subject on the very device, dtype, backend and length of a case, before it trains.

A model whose attention is wrong still trains: its loss falls, its memory is flat. A second computation shows it. Not
covered: attention under torch.compile, which is compared before it is compiled.
"""

from __future__ import annotations

import copy

import torch

from nsa_lib.attention import NSAttention

LONGEST = 2048
"""Tokens up to which the whole attention is computed a second time, in float64 on the CPU: seconds and 0.5 GiB."""


def attention_errors(attention: NSAttention, *, length: int) -> dict[str, float]:
    """Return how far an attention layer is from itself in float64 on the CPU, in its output and in the gradient of x.

    Each is a relative error in the 2-norm, on random rows of `length` tokens or LONGEST. The twin selects its own
    blocks, so the error holds the few rows in which rounding selects others.
    """
    weight = attention.query.weight
    generator = torch.Generator().manual_seed(0)
    shape = (1, min(length, LONGEST), attention.config.dim)
    x, cotangent = (torch.randn(shape, generator=generator).to(weight.dtype) for _ in range(2))
    twin = copy.deepcopy(attention).to("cpu", torch.float64)
    twin.backend = "masked"
    found = _output_and_gradient(attention, x.to(weight.device), cotangent.to(weight.device))
    expected = _output_and_gradient(twin, x.double(), cotangent.double())
    errors = (((a.cpu().double() - b).norm() / b.norm()).item() for a, b in zip(found, expected))
    return dict(zip(("output", "gradient"), errors))


def _output_and_gradient(
    attention: NSAttention, x: torch.Tensor, cotangent: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    x.requires_grad_()
    output = attention(x)
    (gradient,) = torch.autograd.grad(output, x, cotangent)
    return output.detach(), gradient
