"""Which blocks each query reads, from queries and compressed keys alone (kernels/choice.py)."""

from __future__ import annotations

import torch

from nsa_lib.attention.fused.op import op
from nsa_lib.attention.fused.shape import cdiv, power_of_two, require, rows, strides, tile_class, widths

_TILES = {
    "narrow": {"M": 64, "BN": 32, "num_warps": 4, "num_stages": 2},
    "wide": {"M": 128, "BN": 64, "num_warps": 8, "num_stages": 3},
    "float32": {"M": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
}
_MOST_INDEX_BITS = 20


@torch.no_grad()
def select_blocks(
    q: torch.Tensor, k_cmp: torch.Tensor, lse: torch.Tensor, *, l: int, d: int, l_sel: int, n_sel: int, scale: float
) -> torch.Tensor:
    """Return the blocks that each query reads, as `attention.select_blocks` of `attention.block_scores` (Eqs. 9-12).

    Scores are made in float32, and those that agree in their leading 24 - b bits count as equal, b being the bits of
    the number of blocks and 5 at least: for 1,024 blocks those within 6e-5 of each other. No gradient.

    Args:
        q: rotated queries, [B, H, T, D].
        k_cmp: rotated compressed keys, [B, G, C, D].
        lse: log-sum-exp of each query over them, float32 [B, H, T].
        l: tokens in a compression block.
        d: tokens from one compression block to the next.
        l_sel: tokens in a selection block.
        n_sel: blocks to select, 3 or more.
        scale: of the logits.

    Returns:
        int32 [B, G, T, n_sel], ascending, padded at the end with -1.
    """
    require(q, k_cmp)
    (batch, _, length, _), groups = q.shape, k_cmp.shape[1]
    chosen = torch.empty(batch, groups, length, n_sel, dtype=torch.int32, device=q.device)
    _choose(rows(q), rows(k_cmp), lse, chosen, l, d, l_sel, scale)
    return chosen


@op("choose_blocks(Tensor q, Tensor k_cmp, Tensor lse, Tensor(a!) chosen, int l, int d, int l_sel, float scale)")
def _choose(q, k_cmp, lse, chosen, l, d, l_sel, scale):
    from nsa_lib.attention.fused.kernels.choice import choose_blocks

    (batch, heads, length, _), (groups, keys) = q.shape, k_cmp.shape[1:3]
    n, index_bits = chosen.shape[-1], max(5, (cdiv(length, l_sel) - 1).bit_length())
    if index_bits > _MOST_INDEX_BITS:
        raise ValueError(f"backend='fused': {length} tokens, accepts up to {l_sel << _MOST_INDEX_BITS}")
    tiles, share = _TILES[tile_class(q, k_cmp)], heads // groups
    # A head's p sum to at most 1, and each counts for a block at most l / d times.
    shift = (share * (l // d) - 1).bit_length() + 1
    constants = {name: value for name, value in widths(q, k_cmp).items() if name not in ("E", "EP")}
    choose_blocks[batch * groups, cdiv(length, tiles["M"])](
        q, k_cmp, lse, chosen, *strides(q, k_cmp), length, keys, heads, index_bits, scale,
        R=l_sel // d, LD=l // d, SHIFT=shift, GS=share, BS=l_sel, n=n, NP=power_of_two(n, 4), **constants, **tiles,
    )  # fmt: skip
