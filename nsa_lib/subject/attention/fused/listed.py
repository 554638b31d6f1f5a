"""Launches of kernels/listed.py: selected attention with more than 32 blocks, each head by itself."""

from __future__ import annotations

import torch

from nsa_lib.subject.attention.fused import tma
from nsa_lib.subject.attention.fused.chunks import cut, empty_shares, launch_add_shares
from nsa_lib.subject.attention.fused.inverse import invert
from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, empty_pair, power_of_two, strides, tile_class, widths

PARTIAL_BYTES = 400 * 2**20
"""Most bytes of partial outputs, and of partial dq: the heads go in passes of so many, one group at least."""

_MOST_OFFSET = 2**31 - 1

_FORWARD_CHUNK = 1024
"""Entries of a list that one program works on, forward, where nothing has to be added up."""

_SHARES = 8
"""Programs that share a far block that all queries chose, backward."""

_SHARES_OF_BLOCK_0 = 32
"""Programs that share block 0, which is near to all queries."""

_LEAST_CHUNK = 256
"""Fewest queries that are worth a share of their own."""

_FAR = {
    "narrow": {"TQ": 64, "num_warps": 4, "num_stages": 5},
    "wide": {"TQ": 64, "num_warps": 4, "num_stages": 2},
    "float32": {"TQ": 32, "num_warps": 4, "num_stages": 1},
}
_MERGE = {
    "narrow": {"STAGES": 5, "NEAR_STAGES": 1, "num_warps": 4},
    "wide": {"STAGES": 2, "NEAR_STAGES": 1, "num_warps": 4},
    "float32": {"STAGES": 1, "NEAR_STAGES": 1, "num_warps": 4},
    "narrow, TMA": {"STAGES": 5, "NEAR_STAGES": 2, "num_warps": 4},
    "wide, TMA": {"STAGES": 2, "NEAR_STAGES": 2, "num_warps": 4},
}
_BLOCK = {
    "narrow": {"TQ": 64, "STAGES": 2, "NEAR_STAGES": 1, "num_warps": 4, "maxnreg": 168},
    "wide": {"TQ": 32, "STAGES": 2, "NEAR_STAGES": 1, "num_warps": 8},
    "float32": {"TQ": 32, "STAGES": 1, "NEAR_STAGES": 1, "num_warps": 4},
    "narrow, TMA": {"TQ": 64, "STAGES": 3, "NEAR_STAGES": 2, "num_warps": 4, "maxnreg": 168},
    "wide, TMA": {"TQ": 32, "STAGES": 2, "NEAR_STAGES": 1, "num_warps": 8},
}
"""By class of tile; the rows of TMA are for compute capability 9.0 (see `tma.py`)."""


def forward(q, k, v, chosen, out, lse, l_sel, scale):
    """Write output and log2-sum-exp; return the inverse of the selection."""
    inverse = invert(chosen, l_sel, near=False)
    entries, start, slots = inverse
    chunks = cut(start, entries, _FORWARD_CHUNK)
    heads = _heads_a_pass(q, k, chosen, v.shape[-1])
    part = _partials(q, chosen, heads, v.shape[-1])
    part_lse = torch.empty(part.shape[:3], dtype=torch.float32, device=q.device)
    for head in range(0, q.shape[0] * q.shape[1], heads):
        _forward(
            q, k, v, entries, start, chunks.first, chunks.block, slots, part, part_lse, out, lse,
            chunks.size, head, l_sel, scale,
        )  # fmt: skip
    return inverse


def backward(q, k, v, chosen, d_out, state, inverse, dq, adds, l_sel, scale):
    """Write dq, or add to it; return the pair of gradients of keys and values."""
    entries, start, slots = inverse
    length, share = q.shape[2], q.shape[1] // k.shape[1]
    least = min(_SHARES_OF_BLOCK_0, power_of_two(cdiv(length, l_sel), 1))
    chunks = cut(start, entries, max(_LEAST_CHUNK, length // _SHARES), least=least)
    heads = _heads_a_pass(q, k, chosen, q.shape[-1])
    part, pair = _partials(q, chosen, heads, q.shape[-1]), empty_pair(k, v)
    shares = empty_shares(chunks, heads // share, k, v, l_sel)
    for head in range(0, q.shape[0] * q.shape[1], heads):
        _gradient(
            q, k, v, entries, start, chunks.first, chunks.block, slots, d_out, state, part, shares, dq, pair,
            chunks.size, head, adds, l_sel, scale,
        )  # fmt: skip
    return pair


def _heads_a_pass(q, k, chosen, width) -> int:
    """Return how many heads go in a pass, whole groups, as many in each pass."""
    share, total = q.shape[1] // k.shape[1], q.shape[0] * q.shape[1]
    most = max(1, PARTIAL_BYTES // (chosen.shape[2] * chosen.shape[3] * width * q.element_size() * share))
    return cdiv(total // share, cdiv(total // share, most)) * share


def _partials(q, chosen, heads, width) -> torch.Tensor:
    return torch.empty(heads, *chosen.shape[2:], width, dtype=q.dtype, device=q.device)


def _constants(q, k, v, part, l_sel) -> dict:
    return {"n": part.shape[2], "BS": l_sel, "GS": q.shape[1] // k.shape[1], **widths(q, v)}


def _is_long(q: torch.Tensor, v: torch.Tensor, part: torch.Tensor) -> bool:
    """Return whether offsets into a head, of queries, of dOut or of partials, need more than 32 bits."""
    _, heads, length, _ = q.shape
    return max(length * q.stride(2), length * heads * v.shape[-1], part.stride(0)) > _MOST_OFFSET


@op(
    "listed_forward(Tensor q, Tensor k, Tensor v, Tensor entries, Tensor start, Tensor first, Tensor block, "
    "Tensor slots, Tensor(a!) part, Tensor(b!) part_lse, Tensor(c!) out, Tensor(d!) lse, int size, int head, "
    "int l_sel, float scale)"
)
def _forward(q, k, v, entries, start, first, block, slots, part, part_lse, out, lse, size, head, l_sel, scale):
    from nsa_lib.subject.attention.fused.kernels.listed import far_forward, merge

    (batch, heads, length, _), blocks, kind = q.shape, cdiv(k.shape[2], l_sel), tile_class(q, v)
    here, constants = min(len(part), batch * heads - head), _constants(q, k, v, part, l_sel)
    if blocks > 3:  # else every pair is near
        far_forward[block.shape[1], here](
            q, k, v, entries, start, first, block, part, part_lse, *strides(q, k, v),
            length, blocks, heads, head, block.shape[1], size, scale,
            LONG=_is_long(q, v, part), **constants, **_FAR[kind],
        )  # fmt: skip
    tiles = tma.row(_MERGE, k, v)
    merge[blocks, here](
        q, *tma.sources(tiles["TMA"], l_sel, k, v), slots, part, part_lse, out, lse, *strides(q, k, v),
        length, heads, head, scale, NP=power_of_two(constants["n"], 4), **constants, **tiles,
    )  # fmt: skip


@op(
    "listed_gradient(Tensor q, Tensor k, Tensor v, Tensor entries, Tensor start, Tensor first, Tensor block, "
    "Tensor slots, Tensor d_out, Tensor state, Tensor(a!) part, Tensor(b!) shares, Tensor(c!) dq, Tensor(d!) pair, "
    "int size, int head, bool adds, int l_sel, float scale)"
)
def _gradient(
    q, k, v, entries, start, first, block, slots, d_out, state, part, shares, dq, pair, size, head, adds, l_sel, scale
):  # fmt: skip
    from nsa_lib.subject.attention.fused.kernels.listed import block_gradient, merge_query_gradient

    (batch, heads, length, _), blocks, most = q.shape, cdiv(k.shape[2], l_sel), block.shape[1]
    here, constants = min(len(part), batch * heads - head), _constants(q, k, v, part, l_sel)
    tiles = tma.row(_BLOCK, q, d_out, k, v)
    block_gradient[here // constants["GS"], most](
        q, d_out, *tma.sources(tiles["TMA"], l_sel, q, d_out, k, v), state, slots, entries, start, first, block,
        part, pair, shares, *strides(q, k, v), length, blocks, heads, head, most, size, shares.shape[1],
        batch * k.shape[1] * length, scale, LONG=_is_long(q, v, part), **constants, **tiles,
    )  # fmt: skip
    launch_add_shares(shares, first, k, v, pair, head // constants["GS"], here // constants["GS"])
    tiles = tma.row(_MERGE, k, v)
    merge_query_gradient[blocks, here](
        q, *tma.sources(tiles["TMA"], l_sel, k, v), d_out, state, slots, part, dq, *strides(q, k, v),
        length, heads, head, scale, ADD=adds, **constants, **tiles,
    )  # fmt: skip
