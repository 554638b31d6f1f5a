"""Which blocks each query reads, from queries and compressed keys alone (kernels/choice.py)."""

from __future__ import annotations

import torch

from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, power_of_two, strides, tile_class, widths
from nsa_lib.subject.config import NSAConfig

_TILES = {
    "narrow": {"M": 64, "BN": 32, "ROUNDS": 4, "num_warps": 4, "num_stages": 2},
    "wide": {"M": 128, "BN": 64, "ROUNDS": 4, "num_warps": 8, "num_stages": 3},
    "float32": {"M": 32, "BN": 32, "ROUNDS": 1, "num_warps": 4, "num_stages": 1},
}
_MOST_INDEX_BITS = 20


def choose(q: torch.Tensor, k_cmp: torch.Tensor, lse: torch.Tensor, config: NSAConfig) -> torch.Tensor:
    """Return the chosen blocks, int32 [B, G, T, n_sel].

    Args:
        q, k_cmp: as in `chosen_blocks`, rows aligned.
        lse: log2-sum-exp of each query over the compressed keys, float32 [B, H, T].
        config: sizes.
    """
    c = config
    chosen = q.new_empty(q.shape[0], k_cmp.shape[1], q.shape[2], c.n_sel, dtype=torch.int32)
    _choose(q, k_cmp, lse, chosen, c.l, c.d, c.l_sel, c.d_k**-0.5)
    return chosen


def sizes(n: int, l: int, d: int, l_sel: int) -> dict[str, int]:
    """Return the constants of a choice of n blocks."""
    return {"R": l_sel // d, "LD": l // d, "BS": l_sel, "n": n}


def shift(most: int) -> int:
    """Return the power of two that brings scores of at most `most` below 1."""
    return (most - 1).bit_length() + 1


def index_bits(length: int, l_sel: int) -> int:
    """Return the bits of a block's index, at least 5; raise ValueError where they would leave a score none."""
    bits = max(5, (cdiv(length, l_sel) - 1).bit_length())
    if bits > _MOST_INDEX_BITS:
        raise ValueError(f"backend='fused': {length} tokens, accepts up to {l_sel << _MOST_INDEX_BITS}")
    return bits


@op("choose_blocks(Tensor q, Tensor k_cmp, Tensor lse, Tensor(a!) chosen, int l, int d, int l_sel, float scale)")
def _choose(q, k_cmp, lse, chosen, l, d, l_sel, scale):
    from nsa_lib.subject.attention.fused.kernels.choice import choose_blocks

    (batch, heads, length, _), (groups, keys) = q.shape, k_cmp.shape[1:3]
    tiles, share, n = _TILES[tile_class(q, k_cmp)], heads // groups, chosen.shape[-1]
    constants = {name: value for name, value in widths(q, k_cmp).items() if name not in ("E", "EP")}
    # A head's p sum to at most 1, and each counts for a block at most l / d times.
    choose_blocks[batch * groups, cdiv(length, tiles["M"])](
        q, k_cmp, lse, chosen, *strides(q, k_cmp), length, keys, heads, index_bits(length, l_sel), scale,
        SHIFT=shift(share * (l // d)), GS=share, NP=power_of_two(n, 4), **sizes(n, l, d, l_sel), **constants, **tiles,
    )  # fmt: skip
