"""Which blocks each query reads, from queries and compressed keys alone (kernels/choice.py)."""

from __future__ import annotations

import torch

from nsa_lib.attention.fused import band
from nsa_lib.attention.fused.op import op
from nsa_lib.attention.fused.shape import cdiv, empty_by_token, power_of_two, strides, tile_class, widths
from nsa_lib.config import NSAConfig

_TILES = {
    "narrow": {"M": 64, "BN": 32, "num_warps": 4, "num_stages": 2},
    "wide": {"M": 128, "BN": 64, "num_warps": 8, "num_stages": 3},
    "float32": {"M": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
}
_BOTH = {
    "narrow": {"M": 64, "keys": 128, "num_warps": 4, "num_stages": 2},
    "wide": {"M": 64, "keys": 64, "num_warps": 4, "num_stages": 2},
    "float32": {"M": 32, "keys": 32, "num_warps": 4, "num_stages": 1},
}
"""`keys`: of a tile, so many a block that at least _FEWEST_BLOCKS make a tile."""

_FEWEST_BLOCKS = 16
_MOST_KEYS = 128
_MOST_INDEX_BITS = 20


def choose(
    q: torch.Tensor,
    k_cmp: torch.Tensor,
    config: NSAConfig,
    v_cmp: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the chosen blocks, int32 [B, G, T, n_sel]; with v_cmp also write what the compressed branch gives.

    Args:
        q, k_cmp: as in `chosen_blocks`, rows aligned.
        config: sizes.
        v_cmp: compressed values, [B, G, C, d_v]; None if the branch is off.
        out, lse: where its output, by token, and log2-sum-exp go, [B, H, T, d_v] and [B, H, T].
    """
    c, scale = config, config.d_k**-0.5
    chosen = q.new_empty(q.shape[0], k_cmp.shape[1], q.shape[2], c.n_sel, dtype=torch.int32)
    if q.shape[1] == k_cmp.shape[1] and c.l_sel // c.d * _FEWEST_BLOCKS <= _MOST_KEYS:
        _attend_and_choose(q, k_cmp, v_cmp, out, lse, chosen, c.l, c.d, c.l_sel, scale)
        return chosen
    if v_cmp is None:
        v_cmp, out = k_cmp, empty_by_token(q, q.shape[-1])
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    band.attend(q, k_cmp, v_cmp, out[None], lse[None], 0, None, None, *band.compressed(c))
    _choose(q, k_cmp, lse, chosen, c.l, c.d, c.l_sel, scale)
    return chosen


def _sizes(chosen: torch.Tensor, l: int, d: int, l_sel: int) -> dict[str, int]:
    n = chosen.shape[-1]
    return {"R": l_sel // d, "LD": l // d, "BS": l_sel, "n": n, "NP": power_of_two(n, 4)}


def _shift(most: int) -> int:
    """Return the power of two that brings scores of at most `most` below 1."""
    return (most - 1).bit_length() + 1


def _index_bits(length: int, l_sel: int) -> int:
    bits = max(5, (cdiv(length, l_sel) - 1).bit_length())
    if bits > _MOST_INDEX_BITS:
        raise ValueError(f"backend='fused': {length} tokens, accepts up to {l_sel << _MOST_INDEX_BITS}")
    return bits


@op(
    "attend_and_choose(Tensor q, Tensor k_cmp, Tensor? v_cmp, Tensor(a!)? out, Tensor(b!)? lse, Tensor(c!) chosen, "
    "int l, int d, int l_sel, float scale)"
)
def _attend_and_choose(q, k_cmp, v_cmp, out, lse, chosen, l, d, l_sel, scale):
    from nsa_lib.attention.fused.kernels.choice import attend_and_choose

    attends, v = v_cmp is not None, k_cmp if v_cmp is None else v_cmp
    (batch, heads, length, _), tiles, sizes = q.shape, dict(_BOTH[tile_class(q, v)]), _sizes(chosen, l, d, l_sel)
    blocks = max(_FEWEST_BLOCKS, tiles.pop("keys") // sizes["R"])
    # Relative to the largest p, each of a block's l_sel / d keys counts at most l / d times.
    attend_and_choose[batch * heads, cdiv(length, tiles["M"])](
        q, k_cmp, v, *((out, lse) if attends else (chosen, chosen)), chosen, *strides(q, k_cmp, v),
        length, k_cmp.shape[2], heads, _index_bits(length, l_sel), scale,
        ATTENDS=attends, STRIDE=d, OFFSET=l - 1, SHIFT=_shift(l_sel // d * (l // d)), BN=blocks,
        **sizes, **widths(q, v), **tiles,
    )  # fmt: skip


@op("choose_blocks(Tensor q, Tensor k_cmp, Tensor lse, Tensor(a!) chosen, int l, int d, int l_sel, float scale)")
def _choose(q, k_cmp, lse, chosen, l, d, l_sel, scale):
    from nsa_lib.attention.fused.kernels.choice import choose_blocks

    (batch, heads, length, _), (groups, keys) = q.shape, k_cmp.shape[1:3]
    tiles, share = _TILES[tile_class(q, k_cmp)], heads // groups
    constants = {name: value for name, value in widths(q, k_cmp).items() if name not in ("E", "EP")}
    # A head's p sum to at most 1, and each counts for a block at most l / d times.
    choose_blocks[batch * groups, cdiv(length, tiles["M"])](
        q, k_cmp, lse, chosen, *strides(q, k_cmp), length, keys, heads, _index_bits(length, l_sel), scale,
        SHIFT=_shift(share * (l // d)), GS=share, **_sizes(chosen, l, d, l_sel), **constants, **tiles,
    )  # fmt: skip
