"""The error budget: how far a correct implementation in a given dtype may lie from the float64 reference.

First order, as relative errors of whole tensors (norm of the difference / norm of the reference):

- Storing a tensor rounds each entry by at most u = eps / 2 of itself. Roundings are independent, up as often as down:
  their errors add as squares, and r of them in a row give sqrt(r) * u (Higham & Mary, 2019), not r * u.
- A sum of n terms, accumulated in float32 or better, gives sqrt(n) * u of the accumulator.
- Logits are float32 or better in every dtype, as in any fused attention: rounded to bfloat16, a logit of 100 is off by
  a quarter. An absolute error e of the logits changes a probability by e, its normalisation by as much: sqrt(2) * e.
- The absolute error of a logit is the relative one times its size: a row's largest |logit|, for these take the weight,
  and what the entries of q and k bring, |scale| |q| |k| / sqrt(D). So a budget depends on the inputs.
- A gradient meets the forward's errors again (the saved probabilities and output) and adds its own steps. Softmax's
  backward subtracts the output's share from each term: twice the terms, sqrt(2) times the error.

No factor of safety is put on top. The roundings are counted on the longest path that an implementation may take with
every intermediate but the logits in its dtype; one that keeps more of them wider stays well below.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lib.subject.attention import reference

OUTPUT_ROUNDINGS = 5
"""exp, normalisation and the output; a part that is rescaled, and added to the others, where tiles are merged."""

GRADIENT_ROUNDINGS = 5
"""dp, its shared term, ds, the product with q or k, and the part of one head or tile in the sum over all."""

MERGE_ROUNDINGS = 3
"""gate * branch, and the sum over three branches."""

PROJECTION_ROUNDINGS = 1

COMPRESSION_ROUNDINGS = 4
"""block + position, reduce, SiLU, mix."""

ROPE_ROUNDINGS = 3
"""Two products and their sum."""


def unit(dtype: torch.dtype) -> float:
    """Return the largest relative error of one rounding to the dtype."""
    return torch.finfo(dtype).eps / 2


def wide_unit(dtype: torch.dtype) -> float:
    """Return the same for what is kept in float32 or better."""
    return min(unit(dtype), unit(torch.float32))


def steps(dtype: torch.dtype, *, roundings: int, terms: int = 0) -> float:
    """Return the relative error of that many roundings in a row, with a sum over that many terms among them."""
    return math.hypot(math.sqrt(roundings) * unit(dtype), math.sqrt(terms) * wide_unit(dtype))


def compression(dtype: torch.dtype, *, l: int, width: int) -> float:
    """Return the relative error of phi: sums over a block's entries, then over the width."""
    return steps(dtype, roundings=COMPRESSION_ROUNDINGS, terms=l * width + width)


def rotation(dtype: torch.dtype, *, last_position: int, width: int, base: float) -> float:
    """Return the relative error of RoPE: its own steps, and the angle in float32 or better at the last position.

    A frequency f = base^(-x) carries one rounding, and that of its exponent times |ln f|; the product with the position
    is one more. f = 1 and its integer angles are exact.
    """
    frequencies = [base ** (-2 * i / width) for i in range(1, width // 2)]
    worst = max((f * (2 - math.log(f)) for f in frequencies), default=0.0)
    return math.hypot(steps(dtype, roundings=ROPE_ROUNDINGS), last_position * worst * wide_unit(dtype))


@dataclass(frozen=True)
class Allowed:
    """The relative errors that are within the budget."""

    output: float
    gradient: float


def attention(q: Tensor, k: Tensor, *, keys: int, scale: float | None = None, inherited: float = 0.0) -> Allowed:
    """Return the budget of softmax(scale * q . k) v and its gradients, in the dtype of q.

    Args:
        q: queries [B, H, T, D].
        k: keys [B, G, S, D].
        keys: the most that a query sees.
        scale: of the logits; 1 / sqrt(D) by default.
        inherited: relative error that q, k and v each bring along.
    """
    dtype, heads, length, width = q.dtype, *q.shape[1:]
    scale = abs(1 / math.sqrt(width) if scale is None else scale)
    q, k = q.detach().double().unflatten(1, (k.shape[1], -1)), k.detach().double()[:, :, None]
    size = 0.0
    if k.numel():
        largest = scale * (q @ k.mT).abs().amax(-1).square().mean().sqrt()
        entries = scale * q.square().mean().sqrt() * k.square().mean().sqrt() * math.sqrt(width)
        size = float(largest + entries)
    # One rounding of q and one of k, the product, and the scale, all wide; q and k as they came.
    logit_error = size * math.hypot(math.sqrt(width + 2) * wide_unit(dtype), math.sqrt(2) * inherited)
    own = steps(dtype, roundings=OUTPUT_ROUNDINGS, terms=keys)
    output = math.hypot(math.sqrt(2) * logit_error, own, inherited)
    own = steps(dtype, roundings=GRADIENT_ROUNDINGS, terms=max(keys, length * heads // k.shape[1]))
    return Allowed(output, math.sqrt(2) * math.hypot(output, own))


def module(subject: torch.nn.Module, x: Tensor) -> Allowed:
    """Return the budget of a whole NSAttention in its own dtype on x [B, T, dim], for the output and each gradient.

    Projection, compression and rotation make what an attention inherits; gate, sum over branches and `out` follow.
    """
    c, dtype, length, x = subject.config, x.dtype, x.shape[1], x.detach().double()
    weights = {name: parameter.detach().double() for name, parameter in subject.named_parameters()}
    projected = steps(dtype, roundings=PROJECTION_ROUNDINGS, terms=c.dim)
    rotated = rotation(dtype, last_position=length, width=c.d_k, base=c.rope_base)
    compressed = compression(dtype, l=c.l, width=max(c.d_k, c.d_v)) if "cmp" in c.branches else 0.0
    inherited = math.hypot(projected, rotated, compressed)

    def heads(name: str, count: int) -> Tensor:
        return (x @ weights[f"{name}.weight"].T).unflatten(-1, (count, -1)).transpose(1, 2)

    keys = {"cmp": max(1, length // c.d), "slc": min(length, c.n_sel * c.l_sel), "win": min(length, c.w)}
    outputs = []
    for branch in c.branches:
        k = heads(f"key_{branch}", c.groups)
        if branch == "cmp" and c.phi == "mlp":
            k = reference.compress(k, copy.deepcopy(subject.phi_k).double(), l=c.l, d=c.d)
        q = heads("query", c.heads).to(dtype)
        outputs.append(attention(q, k, keys=keys[branch], inherited=inherited).output)
    # A gate's relative error is at most the absolute one of its logit, and one rounding.
    gate = float((x @ weights["branch_gates.weight"].T).square().mean().sqrt()) * projected
    after = steps(dtype, roundings=1 + MERGE_ROUNDINGS + PROJECTION_ROUNDINGS, terms=c.heads * c.d_v)
    output = math.hypot(max(outputs), gate, after)
    # Back through out, gate, attention, rotation and compression, to a weight: a sum over the tokens.
    roundings = GRADIENT_ROUNDINGS + ROPE_ROUNDINGS + MERGE_ROUNDINGS + 2 * PROJECTION_ROUNDINGS
    own = steps(dtype, roundings=roundings, terms=length * c.heads // c.groups)
    return Allowed(output, math.sqrt(2) * math.hypot(output, own, compressed))
