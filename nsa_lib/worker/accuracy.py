"""Checks of the subject on the very device, dtype, backend and length of a case, before it trains.

A model whose attention is wrong still trains: its loss falls, its memory is flat. A second computation shows it. Not
covered: attention under torch.compile, which is compared before it is compiled.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch

from nsa_lib.subject.attention import BACKENDS, Attention, NSAttention, reference
from nsa_lib.subject.config import NSAConfig
from nsa_lib.subject.model import TinyLM

LONGEST = 2048
"""The most tokens for which the whole attention is computed a second time, in float64 on the CPU: seconds, 0.5 GiB."""

SAMPLED_QUERIES = 256
"""Queries whose selected attention the reference computes: about a second for two heads at 2048 tokens, not nine."""


def attention_errors(attention: NSAttention, *, length: int) -> dict[str, float]:
    """Return how far an attention layer is from itself in float64 on the CPU, in its output and in the gradient of x.

    Each is a relative error in the 2-norm, on random rows of `length` tokens, at most LONGEST. The twin selects its own
    blocks, so the error includes the few rows for which rounding selects others.
    """
    weight = attention.query.weight
    generator = torch.Generator().manual_seed(0)
    shape = (1, min(length, LONGEST), attention.config.dim)
    x, cotangent = (torch.randn(shape, generator=generator).to(weight.dtype) for _ in range(2))
    twin = copy.deepcopy(attention).to("cpu", torch.float64)
    twin.backend = "masked"
    found = with_gradients(attention, [x.to(weight.device)], cotangent.to(weight.device))
    expected = with_gradients(twin, [x.double()], cotangent.double())
    errors = (relative_error(a, b) for a, b in zip(found, expected, strict=True))
    return dict(zip(("output", "gradient"), errors, strict=True))


def selected_errors(attention: NSAttention, asked: NSAConfig, *, length: int) -> dict[str, float]:
    """Return how far a layer's selected branch is from the reference: output, and gradients of q, k and v.

    Each is a relative error in the 2-norm. Backend and reference get the same two heads of the layer's own tensors on
    random rows, with their groups, and the blocks that the run itself selects. The reference is slow, so it computes
    SAMPLED_QUERIES of the queries, spread over the sequence with both ends. The gradient that enters is zero at all
    other queries. So what is compared is exact: the output at the sampled queries, and every gradient in full.

    Args:
        attention: the layer.
        asked: its sizes as they were asked for.
        length: tokens.
    """
    weight, c = attention.query.weight, asked
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((1, length, c.dim), generator=generator).to(weight.dtype).to(weight.device)
    sample = torch.linspace(0, length - 1, min(length, SAMPLED_QUERIES), dtype=torch.float64).round().long()
    tensors, blocks, run = selected_branch(attention, x)
    cotangent = torch.zeros(*tensors[0].shape[:3], c.d_v)
    cotangent[:, :, sample] = torch.randn(cotangent[:, :, sample].shape, generator=generator)
    cotangent = cotangent.to(weight.dtype)

    def judged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows = {"l_sel": c.l_sel, "positions": sample}
        return reference.selected_attention(q[:, :, sample], k, v, blocks.cpu()[:, :, sample], **rows)

    output, *gradients = with_gradients(run, tensors, cotangent.to(weight.device))
    expected = with_gradients(judged, [t.cpu().double() for t in tensors], cotangent[:, :, sample].double())
    errors = [relative_error(a, b) for a, b in zip((output[:, :, sample], *gradients), expected, strict=True)]
    return dict(zip(("output", "dq", "dk", "dv"), errors, strict=True))


def selected_branch(
    attention: Attention, x: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, Callable[..., torch.Tensor]]:
    """Return q, k, v of two heads of a layer on rows x, the blocks that they read, and the backend that attends."""
    c = attention.config
    groups = 1 if c.heads // c.groups > 1 else 2
    with torch.no_grad():
        parts = attention.project(x)
    blocks = attention.choose(parts)[:, :groups]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return BACKENDS[attention.backend](q, k, v, blocks, l_sel=c.l_sel, scale=c.d_k**-0.5)

    return (parts["query"][:, :2], parts["key_slc"][:, :groups], parts["value_slc"][:, :groups]), blocks, run


def with_gradients(
    function: Callable[..., torch.Tensor], tensors: Iterable[torch.Tensor], cotangent: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the output of a function of tensors, and its gradient with respect to each."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, cotangent)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the norm of the difference over that of `exact`, both 2-norms in float64."""
    found, exact = found.detach().cpu().double(), exact.detach().cpu().double()
    return ((found - exact).norm() / exact.norm()).item()


@torch.no_grad()
def pass_through_layers(model: TinyLM, x: torch.Tensor) -> None:
    """Run every attention layer of a model once on x [B, T, dim]."""
    for block in model.blocks:
        block.attention(x)
