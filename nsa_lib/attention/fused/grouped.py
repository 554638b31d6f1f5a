"""Launches of kernels/grouped.py: selected attention with many heads a group, all of which read the same blocks."""

from __future__ import annotations

from nsa_lib.attention.fused import tma
from nsa_lib.attention.fused.block_0 import add_shares, empty_shares
from nsa_lib.attention.fused.inverse import invert
from nsa_lib.attention.fused.op import op
from nsa_lib.attention.fused.shape import empty_pair, power_of_two, strides, tile_class, widths

FEWEST_HEADS = 8
"""Heads a group that fill at least half of the shortest product."""

_QUERY = {
    "narrow": {"STAGES": 3, "num_warps": 2},
    "wide": {"STAGES": 2, "num_warps": 4},
    "float32": {"STAGES": 1, "num_warps": 4},
    "narrow, TMA": {"STAGES": 2, "num_warps": 2},
    "wide, TMA": {"STAGES": 2, "num_warps": 2},
}
"""By class of tile; the rows of TMA are for compute capability 9.0 (see `tma.py`)."""

_KEY = {
    "narrow": {"rows": 64, "num_warps": 4, "num_stages": 2},
    "wide": {"rows": 32, "num_warps": 4, "num_stages": 2},
    "float32": {"rows": 32, "num_warps": 4, "num_stages": 1},
}


def forward(q, k, v, chosen, out, lse, l_sel, scale):
    """Write output and log2-sum-exp; backward needs the choice alone."""
    _forward(q, k, v, chosen, out, lse, l_sel, scale)
    return ()


def backward(q, k, v, chosen, d_out, state, inverse, dq, adds, l_sel, scale):
    """Write dq, or add to it; return the pair of gradients of keys and values."""
    _query_gradient(q, k, v, chosen, d_out, state, dq, adds, l_sel, scale)
    entries, start, _ = invert(chosen, l_sel, near=True)
    pair = empty_pair(k, v)
    shares = empty_shares(k, v, l_sel)
    _key_gradient(q, k, v, entries, start, d_out, state, shares, pair, chosen.shape[-1], l_sel, scale)
    add_shares(pair, shares, k, v)
    return pair


def _constants(q, k, v, l_sel) -> dict:
    share = q.shape[1] // k.shape[1]
    return {"BS": l_sel, "GS": share, "GP": power_of_two(share), **widths(q, v)}


@op(
    "grouped_forward(Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor(a!) out, Tensor(b!) lse, int l_sel, "
    "float scale)"
)
def _forward(q, k, v, chosen, out, lse, l_sel, scale):
    from nsa_lib.attention.fused.kernels.grouped import grouped_forward

    (batch, groups, length, _), heads, tiles = k.shape, q.shape[1], tma.row(_QUERY, k, v)
    grouped_forward[length, batch * groups](
        q, *tma.sources(tiles["TMA"], l_sel, k, v), chosen, out, lse, *strides(q, k, v), length, heads, scale,
        n=chosen.shape[-1], **_constants(q, k, v, l_sel), **tiles,
    )  # fmt: skip


@op(
    "grouped_query_gradient(Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor d_out, Tensor state, Tensor(a!) dq, "
    "bool adds, int l_sel, float scale)"
)
def _query_gradient(q, k, v, chosen, d_out, state, dq, adds, l_sel, scale):
    from nsa_lib.attention.fused.kernels.grouped import grouped_query_gradient

    (batch, groups, length, _), heads, tiles = k.shape, q.shape[1], tma.row(_QUERY, k, v)
    grouped_query_gradient[length, batch * groups](
        q, *tma.sources(tiles["TMA"], l_sel, k, v), d_out, state, chosen, dq, *strides(q, k, v), length, heads, scale,
        n=chosen.shape[-1], ADD=adds, **_constants(q, k, v, l_sel), **tiles,
    )  # fmt: skip


@op(
    "grouped_key_gradient(Tensor q, Tensor k, Tensor v, Tensor entries, Tensor start, Tensor d_out, Tensor state, "
    "Tensor(a!) pair_0, Tensor(b!) pair, int n, int l_sel, float scale)"
)
def _key_gradient(q, k, v, entries, start, d_out, state, pair_0, pair, n, l_sel, scale):
    from nsa_lib.attention.fused.kernels.grouped import grouped_key_gradient

    (lanes, shares), (length, blocks) = pair_0.shape[:2], (k.shape[2], start.shape[1] - 1)
    constants, tiles = _constants(q, k, v, l_sel), dict(_KEY[tile_class(q, v)])
    queries = max(1, tiles.pop("rows") // constants["GP"])
    grouped_key_gradient[lanes, shares + blocks - 1](
        q, k, v, d_out, state, entries, start, pair, pair_0, *strides(q, k, v),
        length, blocks, q.shape[1], lanes * length, scale, n=n, TQ=queries, SHARES=shares, **constants, **tiles,
    )  # fmt: skip
