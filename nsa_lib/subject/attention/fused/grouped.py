"""Launches of kernels/grouped.py: selected attention with many heads a group, all of which read the same blocks."""

from __future__ import annotations

import torch

from nsa_lib.subject.attention.fused import tma
from nsa_lib.subject.attention.fused.chunks import cut, empty_shares, launch_add_shares
from nsa_lib.subject.attention.fused.inverse import invert
from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, empty_pair, power_of_two, strides, tile_class, widths

FEWEST_HEADS = 8
"""Heads a group that fill at least half of the shortest product."""

_ALONE = {
    "narrow": {"STAGES": 3, "num_warps": 2},
    "wide": {"STAGES": 2, "num_warps": 4},
    "float32": {"STAGES": 1, "num_warps": 4},
    "narrow, TMA": {"STAGES": 2, "num_warps": 2},
    "wide, TMA": {"STAGES": 2, "num_warps": 2},
}
_TOGETHER = {
    "narrow": {"STAGES": 2, "num_warps": 4},
    "wide": {"STAGES": 2, "num_warps": 4},
    "float32": {"STAGES": 1, "num_warps": 4},
    "narrow, TMA": {"STAGES": 3, "num_warps": 4},
    "wide, TMA": {"STAGES": 3, "num_warps": 4},
}
_TOGETHER_BACK = {
    **_TOGETHER,
    "narrow, TMA": {"STAGES": 2, "num_warps": 4},
    "wide, TMA": {"STAGES": 2, "num_warps": 4},
}
"""By class of tile; the rows of TMA are for compute capability 9.0 (see `tma.py`)."""

_ROWS = 64
"""Rows of a tile, of the heads of some neighbouring queries; float32 has those of one query."""

_MOST_SHARED = 5 / 8
"""Longest list of such a tile, as a share of all its choices, up to which dq by the list is faster than one by one."""

_SHARES = 16
"""Programs that share a block that all queries chose, as block 0."""

_LEAST_CHUNK = 256
"""Fewest queries that are worth a share of their own."""

_KEY = {
    "narrow": {"rows": 64, "num_warps": 4, "num_stages": 2},
    "wide": {"rows": 32, "num_warps": 4, "num_stages": 2},
    "float32": {"rows": 32, "num_warps": 4, "num_stages": 1},
}


def forward(q, k, v, chosen, out, lse, l_sel, scale):
    """Write output and log2-sum-exp; return what backward needs: which blocks some neighbours chose together."""
    (batch, groups, length, n), queries = chosen.shape, _queries(q, k)
    tiles = cdiv(length, queries)
    entries = chosen.new_empty(batch * groups, tiles, queries * power_of_two(n, 4), dtype=torch.int32)
    count = chosen.new_empty(batch * groups, tiles, dtype=torch.int32)
    _forward(q, k, v, chosen, out, lse, entries, count, l_sel, scale)
    return entries, count


def backward(q, k, v, chosen, d_out, state, inverse, dq, adds, l_sel, scale):
    """Write dq, or add to it; return the pair of gradients of keys and values."""
    _query_gradient(q, k, v, chosen, *inverse, d_out, state, dq, adds, l_sel, scale)
    entries, start, _ = invert(chosen, l_sel, near=True)
    chunks = cut(start, entries, max(_LEAST_CHUNK, chosen.shape[2] // _SHARES))
    shares, pair, n = empty_shares(chunks, len(start), k, v, l_sel), empty_pair(k, v), chosen.shape[-1]
    _key_gradient(
        q, k, v, entries, start, chunks.first, chunks.block, d_out, state, shares, pair, chunks.size, n, l_sel, scale
    )  # fmt: skip
    return pair


def by_union(q, k, chosen, inverse) -> torch.Tensor:
    """Return which tiles of neighbouring queries have their dq made over the union of their blocks, bool [B, G, tiles].

    The kernels decide so on the device, from the same lists.
    """
    _, count = inverse
    return (count <= _most_shared(_queries(q, k), chosen.shape[-1])).unflatten(0, chosen.shape[:2])


def _most_shared(queries: int, n: int) -> int:
    """Return the longest list of a tile of so many queries that is walked for dq, each query having n blocks."""
    return int(queries * n * _MOST_SHARED)


def _queries(q, k) -> int:
    """Return how many queries are a tile."""
    return 1 if q.dtype == torch.float32 else max(1, _ROWS // power_of_two(q.shape[1] // k.shape[1]))


def _constants(q, k, v, l_sel) -> dict:
    share = q.shape[1] // k.shape[1]
    return {"BS": l_sel, "GS": share, "GP": power_of_two(share), **widths(q, v)}


@op(
    "grouped_forward(Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor(a!) out, Tensor(b!) lse, Tensor(c!) entries, "
    "Tensor(d!) count, int l_sel, float scale)"
)
def _forward(q, k, v, chosen, out, lse, entries, count, l_sel, scale):
    from nsa_lib.subject.attention.fused.kernels.union import list_union, union_forward

    (lanes, tiles), length, queries, n = count.shape, k.shape[2], _queries(q, k), chosen.shape[-1]
    places = power_of_two(n, 4)
    list_union[tiles, lanes](chosen, entries, count, length, n=n, NP=places, TQ=queries, num_warps=4)
    row = tma.row(_TOGETHER, k, v)
    union_forward[tiles, lanes](
        q, *tma.sources(row["TMA"], l_sel, k, v), entries, count, out, lse, *strides(q, k, v), length, q.shape[1],
        scale, NP=places, TQ=queries, **_constants(q, k, v, l_sel), **row,
    )  # fmt: skip


@op(
    "grouped_query_gradient(Tensor q, Tensor k, Tensor v, Tensor chosen, Tensor entries, Tensor count, Tensor d_out, "
    "Tensor state, Tensor(a!) dq, bool adds, int l_sel, float scale)"
)
def _query_gradient(q, k, v, chosen, entries, count, d_out, state, dq, adds, l_sel, scale):
    from nsa_lib.subject.attention.fused.kernels.grouped import grouped_query_gradient
    from nsa_lib.subject.attention.fused.kernels.union import union_query_gradient

    (lanes, tiles), (heads, length), n, queries = count.shape, q.shape[1:3], chosen.shape[-1], _queries(q, k)
    constants = {"TQ": queries, "ADD": adds, **_constants(q, k, v, l_sel)}
    most, row = _most_shared(queries, n), tma.row(_TOGETHER_BACK, k, v)
    sources = tma.sources(row["TMA"], l_sel, k, v)
    union_query_gradient[tiles, lanes](
        q, *sources, d_out, state, entries, count, dq, *strides(q, k, v), length, heads, most, scale,
        NP=power_of_two(n, 4), **constants, **row,
    )  # fmt: skip
    grouped_query_gradient[length, lanes](
        q, *sources, d_out, state, chosen, count, dq, *strides(q, k, v), length, heads, most, scale,
        n=n, **constants, **tma.row(_ALONE, k, v),
    )  # fmt: skip


@op(
    "grouped_key_gradient(Tensor q, Tensor k, Tensor v, Tensor entries, Tensor start, Tensor first, Tensor block, "
    "Tensor d_out, Tensor state, Tensor(a!) shares, Tensor(b!) pair, int size, int n, int l_sel, float scale)"
)
def _key_gradient(q, k, v, entries, start, first, block, d_out, state, shares, pair, size, n, l_sel, scale):
    from nsa_lib.subject.attention.fused.kernels.grouped import grouped_key_gradient

    (lanes, places), length, blocks, most = shares.shape[:2], k.shape[2], start.shape[1] - 1, block.shape[1]
    constants, tiles = _constants(q, k, v, l_sel), dict(_KEY[tile_class(q, v)])
    queries = max(1, tiles.pop("rows") // constants["GP"])
    grouped_key_gradient[lanes, most](
        q, k, v, d_out, state, entries, start, first, block, pair, shares, *strides(q, k, v),
        length, blocks, q.shape[1], most, size, places, lanes * length, scale, n=n, TQ=queries, **constants, **tiles,
    )  # fmt: skip
    launch_add_shares(shares, first, k, v, pair, 0, lanes)
