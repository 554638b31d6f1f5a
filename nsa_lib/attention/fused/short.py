"""Launches of kernels/short.py: selected attention with at most 32 blocks."""

from __future__ import annotations

import torch

from nsa_lib.attention.fused.op import op
from nsa_lib.attention.fused.shape import cdiv, empty_by_token, power_of_two, strides, tile_class, widths

MOST_BLOCKS = 32
"""A block is a bit of an int32."""

_FORWARD = {
    "narrow": {"num_warps": 4, "num_stages": 3},
    "wide": {"num_warps": 4, "num_stages": 2},
    "float32": {"num_warps": 4, "num_stages": 1},
}
_QUERY_GRADIENT = {**_FORWARD, "narrow": {"num_warps": 4, "num_stages": 4}}
_KEY_GRADIENT = {**_FORWARD, "narrow": {"num_warps": 4, "num_stages": 1}}


def forward(q, k, v, chosen, l_sel, scale):
    """Return output, log-sum-exp and what backward needs of the selection: the words of its bits."""
    out = empty_by_token(q, v.shape[-1])
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    words = torch.empty(chosen.shape[:3], dtype=torch.int32, device=q.device)
    _forward(q, k, v, chosen, out, lse, words, l_sel, scale)
    return out, lse, (words,)


def backward(q, k, v, chosen, out, lse, d_out, inverse, l_sel, scale):
    """Return dq, dk, dv."""
    delta = torch.empty_like(lse)
    dq, dk, dv = (empty_by_token(x, x.shape[-1]) for x in (q, k, v))
    _query_gradient(q, k, v, out, d_out, lse, delta, *inverse, dq, l_sel, scale)
    _key_gradient(q, k, v, d_out, lse, delta, *inverse, dk, dv, l_sel, scale)
    return dq, dk, dv


def _tile_rows(q: torch.Tensor, l_sel: int) -> int:
    """Return the queries of a tile, a multiple of the block."""
    return max(l_sel, 32 if q.dtype == torch.float32 else 64)


def _constants(q, k, v, l_sel) -> dict:
    return {"BS": l_sel, "GS": q.shape[1] // k.shape[1], "TQ": _tile_rows(q, l_sel), **widths(q, v)}


@op(
    "short_forward(Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor(a!) out, Tensor(b!) lse, Tensor(c!) words, "
    "int l_sel, float scale)"
)
def _forward(q, k, v, chosen, out, lse, words, l_sel, scale):
    from nsa_lib.attention.fused.kernels.short import short_forward

    (batch, heads, length, _), n = q.shape, chosen.shape[-1]
    short_forward[batch * heads, cdiv(length, _tile_rows(q, l_sel))](
        q, k, v, chosen, out, lse, words, *strides(q, k, v), length, heads, scale,
        n=n, NP=power_of_two(n, 4), **_constants(q, k, v, l_sel), **_FORWARD[tile_class(q, v)],
    )  # fmt: skip


@op(
    "short_query_gradient(Tensor q, Tensor k, Tensor v, Tensor out, Tensor d_out, Tensor lse, Tensor(a!) delta, "
    "Tensor words, Tensor(b!) dq, int l_sel, float scale)"
)
def _query_gradient(q, k, v, out, d_out, lse, delta, words, dq, l_sel, scale):
    from nsa_lib.attention.fused.kernels.short import short_query_gradient

    batch, heads, length, _ = q.shape
    short_query_gradient[batch * heads, cdiv(length, _tile_rows(q, l_sel))](
        q, k, v, out, d_out, lse, delta, words, dq, *strides(q, k, v), length, heads, scale,
        **_constants(q, k, v, l_sel), **_QUERY_GRADIENT[tile_class(q, v)],
    )  # fmt: skip


@op(
    "short_key_gradient(Tensor q, Tensor k, Tensor v, Tensor d_out, Tensor lse, Tensor delta, Tensor words, "
    "Tensor(a!) dk, Tensor(b!) dv, int l_sel, float scale)"
)
def _key_gradient(q, k, v, d_out, lse, delta, words, dk, dv, l_sel, scale):
    from nsa_lib.attention.fused.kernels.short import short_key_gradient

    batch, groups, length, _ = k.shape
    short_key_gradient[batch * groups, cdiv(length, l_sel)](
        q, k, v, d_out, lse, delta, words, dk, dv, *strides(q, k, v), length, q.shape[1], scale,
        **_constants(q, k, v, l_sel), **_KEY_GRADIENT[tile_class(q, v)],
    )  # fmt: skip
