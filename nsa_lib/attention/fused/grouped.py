"""Launches of kernels/grouped.py: selected attention with many heads a group, all of which read the same blocks."""

from __future__ import annotations

import torch

from nsa_lib.attention.fused.block_0 import add_shares, empty_shares
from nsa_lib.attention.fused.inverse import invert
from nsa_lib.attention.fused.op import op
from nsa_lib.attention.fused.shape import empty_by_token, power_of_two, strides, tile_class, widths

FEWEST_HEADS = 8
"""Heads a group that fill at least half of the shortest product."""

_QUERY = {
    "narrow": {"num_warps": 2, "num_stages": 3},
    "wide": {"num_warps": 4, "num_stages": 2},
    "float32": {"num_warps": 4, "num_stages": 1},
}
_KEY = {
    "narrow": {"rows": 64, "num_warps": 4, "num_stages": 2},
    "wide": {"rows": 32, "num_warps": 4, "num_stages": 2},
    "float32": {"rows": 32, "num_warps": 4, "num_stages": 1},
}


def forward(q, k, v, chosen, l_sel, scale):
    """Return output, log-sum-exp and the inverse of the selection."""
    out = empty_by_token(q, v.shape[-1])
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    _forward(q, k, v, chosen, out, lse, l_sel, scale)
    return out, lse, ()


def backward(q, k, v, chosen, out, lse, d_out, inverse, l_sel, scale):
    """Return dq, dk, dv."""
    delta = torch.empty_like(lse)
    dq, dk, dv = (empty_by_token(x, x.shape[-1]) for x in (q, k, v))
    _query_gradient(q, k, v, chosen, out, d_out, lse, delta, dq, l_sel, scale)
    entries, start, _ = invert(chosen, l_sel, near=True)
    dk_0, dv_0 = empty_shares(k, l_sel), empty_shares(v, l_sel)
    _key_gradient(q, k, v, entries, start, d_out, lse, delta, dk_0, dv_0, dk, dv, chosen.shape[-1], l_sel, scale)
    add_shares(dk, dk_0)
    add_shares(dv, dv_0)
    return dq, dk, dv


def _constants(q, k, v, l_sel) -> dict:
    share = q.shape[1] // k.shape[1]
    return {"BS": l_sel, "GS": share, "GP": power_of_two(share), **widths(q, v)}


@op(
    "grouped_forward(Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor(a!) out, Tensor(b!) lse, int l_sel, "
    "float scale)"
)
def _forward(q, k, v, chosen, out, lse, l_sel, scale):
    from nsa_lib.attention.fused.kernels.grouped import grouped_forward

    (batch, groups, length, _), heads = k.shape, q.shape[1]
    grouped_forward[length, batch * groups](
        q, k, v, chosen, out, lse, *strides(q, k, v), length, heads, scale,
        n=chosen.shape[-1], **_constants(q, k, v, l_sel), **_QUERY[tile_class(q, v)],
    )  # fmt: skip


@op(
    "grouped_query_gradient(Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor out, Tensor d_out, Tensor lse, "
    "Tensor(a!) delta, Tensor(b!) dq, int l_sel, float scale)"
)
def _query_gradient(q, k, v, chosen, out, d_out, lse, delta, dq, l_sel, scale):
    from nsa_lib.attention.fused.kernels.grouped import grouped_query_gradient

    (batch, groups, length, _), heads = k.shape, q.shape[1]
    grouped_query_gradient[length, batch * groups](
        q, k, v, out, d_out, lse, delta, chosen, dq, *strides(q, k, v), length, heads, scale,
        n=chosen.shape[-1], **_constants(q, k, v, l_sel), **_QUERY[tile_class(q, v)],
    )  # fmt: skip


@op(
    "grouped_key_gradient(Tensor q, Tensor k, Tensor v, Tensor entries, Tensor start, Tensor d_out, Tensor lse, "
    "Tensor delta, Tensor(a!) dk_0, Tensor(b!) dv_0, Tensor(c!) dk, Tensor(d!) dv, int n, int l_sel, float scale)"
)
def _key_gradient(q, k, v, entries, start, d_out, lse, delta, dk_0, dv_0, dk, dv, n, l_sel, scale):
    from nsa_lib.attention.fused.kernels.grouped import grouped_key_gradient

    (lanes, shares), (length, blocks) = dk_0.shape[:2], (k.shape[2], start.shape[1] - 1)
    constants, tiles = _constants(q, k, v, l_sel), dict(_KEY[tile_class(q, v)])
    queries = max(1, tiles.pop("rows") // constants["GP"])
    grouped_key_gradient[lanes, shares + blocks - 1](
        q, k, v, d_out, lse, delta, entries, start, dk, dv, dk_0, dv_0, *strides(q, k, v),
        length, blocks, q.shape[1], scale, n=n, TQ=queries, SHARES=shares, **constants, **tiles,
    )  # fmt: skip
