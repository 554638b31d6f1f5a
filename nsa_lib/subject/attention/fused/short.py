"""Launches of kernels/short.py: selected attention with at most 32 blocks."""

from __future__ import annotations

import torch

from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, empty_pair, power_of_two, strides, tile_class, widths

MOST_BLOCKS = 32
"""A block is a bit of an int32."""

_FORWARD = {
    "narrow": {"num_warps": 4, "num_stages": 3},
    "wide": {"num_warps": 4, "num_stages": 2},
    "float32": {"num_warps": 4, "num_stages": 1},
}
_KEY_GRADIENT = {**_FORWARD, "narrow": {"num_warps": 4, "num_stages": 1}}


def takes(length: int, l_sel: int) -> bool:
    """Return whether so many tokens have so few blocks."""
    return cdiv(length, l_sel) <= MOST_BLOCKS


def forward(q, k, v, chosen, out, lse, l_sel, scale):
    """Write output and log2-sum-exp; return what backward needs of the selection: the words of its bits."""
    words = torch.empty(chosen.shape[:3], dtype=torch.int32, device=q.device)
    _forward(q, k, v, chosen, out, lse, words, l_sel, scale)
    return (words,)


def backward(q, k, v, chosen, d_out, state, inverse, dq, adds, l_sel, scale):
    """Return the pair of gradients of keys and values; dq has been made row by row."""
    pair = empty_pair(k, v)
    _key_gradient(q, k, v, d_out, state, *inverse, pair, l_sel, scale)
    return pair


def tile_rows(q: torch.Tensor, l_sel: int) -> int:
    """Return the queries of a tile, a multiple of the block."""
    return max(l_sel, 32 if q.dtype == torch.float32 else 64)


def _constants(q, k, v, l_sel) -> dict:
    return {"BS": l_sel, "GS": q.shape[1] // k.shape[1], "TQ": tile_rows(q, l_sel), **widths(q, v)}


@op(
    "short_forward(Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor(a!) out, Tensor(b!) lse, Tensor(c!) words, "
    "int l_sel, float scale)"
)
def _forward(q, k, v, chosen, out, lse, words, l_sel, scale):
    from nsa_lib.subject.attention.fused.kernels.short import short_forward

    (batch, heads, length, _), n = q.shape, chosen.shape[-1]
    short_forward[batch * heads, cdiv(length, tile_rows(q, l_sel))](
        q, k, v, chosen, out, lse, words, *strides(q, k, v), length, heads, scale,
        n=n, NP=power_of_two(n, 4), **_constants(q, k, v, l_sel), **_FORWARD[tile_class(q, v)],
    )  # fmt: skip


@op(
    "short_key_gradient(Tensor q, Tensor k, Tensor v, Tensor d_out, Tensor state, Tensor words, Tensor(a!) pair, "
    "int l_sel, float scale)"
)
def _key_gradient(q, k, v, d_out, state, words, pair, l_sel, scale):
    from nsa_lib.subject.attention.fused.kernels.short import short_key_gradient

    batch, groups, length, _ = k.shape
    short_key_gradient[batch * groups, cdiv(length, l_sel)](
        q, k, v, d_out, state, words, pair, *strides(q, k, v), length, q.shape[1], batch * groups * length, scale,
        **_constants(q, k, v, l_sel), **_KEY_GRADIENT[tile_class(q, v)],
    )  # fmt: skip
