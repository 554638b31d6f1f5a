"""Launches of kernels/whole.py: all branches at once, where there are at most 32 blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nsa_lib.subject.attention.fused import short
from nsa_lib.subject.attention.fused.choice import shift, sizes
from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, empty_pair, power_of_two, strides, tile_class, widths
from nsa_lib.subject.config import BRANCHES, NSAConfig

_FORWARD = {
    "narrow": {"BN": 64, "num_warps": 4, "num_stages": 3},
    "wide": {"BN": 64, "num_warps": 4, "num_stages": 2},
    "float32": {"BN": 32, "num_warps": 4, "num_stages": 1},
}
_KEY_GRADIENT = {
    "narrow": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 1},
    "wide": {"M": 32, "BN": 64, "num_warps": 4, "num_stages": 2},
    "float32": {"M": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
}
_MOST_KEYS_A_BLOCK = 8
"""Compressed keys that begin in a block: those of 16 blocks are a tile."""


def goes_back(length: int, config: NSAConfig) -> bool:
    """Return whether the keys' gradients of all branches can be made at once."""
    return set(config.branches) == set(BRANCHES) and short.takes(length, config.l_sel)


def goes(length: int, config: NSAConfig) -> bool:
    """Return whether forward can be one launch: then each head must choose for itself too."""
    alone = config.heads == config.groups and config.l_sel // config.d <= _MOST_KEYS_A_BLOCK
    return alone and goes_back(length, config)


def choose(q: torch.Tensor, k_cmp: torch.Tensor, config: NSAConfig) -> torch.Tensor:
    """Return the blocks that `forward` chooses, int32 [B, H, T, n_sel]."""
    chosen = q.new_empty(*q.shape[:3], config.n_sel, dtype=torch.int32)
    _choose(q, k_cmp, chosen, config.l, config.d, config.l_sel, config.d_k**-0.5)
    return chosen


def forward(
    q: torch.Tensor,
    keys_values: Sequence[torch.Tensor],
    gates: torch.Tensor,
    outputs: torch.Tensor,
    lse: torch.Tensor,
    out: torch.Tensor,
    places: Sequence[int],
    config: NSAConfig,
) -> torch.Tensor:
    """Write each branch's output and log2-sum-exp, and the gated sum; return the chosen blocks as words [B, H, T].

    Args:
        keys_values: k_cmp, v_cmp, k_slc, v_slc, k_win, v_win.
        places: of compressed, selected and sliding branch in `outputs`.
        The others: as in `nsa` and `empty_outputs`.
    """
    c, words = config, q.new_empty(q.shape[:3], dtype=torch.int32)
    _forward(
        q, keys_values, gates, outputs, lse, words, out, *places, c.n_sel, c.l, c.d, c.l_sel, c.w, c.d_k**-0.5
    )  # fmt: skip
    return words


def gradient(
    q: torch.Tensor,
    keys_values: Sequence[torch.Tensor],
    words: torch.Tensor,
    d_out: torch.Tensor,
    state: torch.Tensor,
    places: Sequence[int],
    config: NSAConfig,
) -> list[torch.Tensor]:
    """Return each branch's pair of gradients of keys and values; `state` as in `rows.gradient`."""
    c = config
    pairs = [empty_pair(k, v) for k, v in zip(keys_values[::2], keys_values[1::2], strict=True)]
    _key_gradient(q, keys_values, words, d_out, state, pairs, *places, c.l, c.d, c.l_sel, c.w, c.d_k**-0.5)
    return pairs


@op("whole_choice(Tensor q, Tensor k_cmp, Tensor(a!) chosen, int l, int d, int l_sel, float scale)")
def _choose(q, k_cmp, chosen, l, d, l_sel, scale):
    from nsa_lib.subject.attention.fused.kernels.whole import whole_choice

    (batch, heads, length, _), n = q.shape, chosen.shape[-1]
    whole_choice[batch * heads, cdiv(length, short.tile_rows(q, l_sel))](
        q, k_cmp, chosen, *strides(q, k_cmp), length, k_cmp.shape[2], heads, scale, NP=power_of_two(n, 4),
        M=short.tile_rows(q, l_sel), **_choice(n, l, d, l_sel), **widths(q, k_cmp), num_warps=4, num_stages=1,
    )  # fmt: skip


@op(
    "whole_forward(Tensor q, Tensor[] keys_values, Tensor gates, Tensor(a!) outputs, Tensor(b!) lse, Tensor(c!) words, "
    "Tensor(d!) out, int cmp, int slc, int win, int n, int l, int d, int l_sel, int window, float scale)"
)
def _forward(q, keys_values, gates, outputs, lse, words, out, cmp, slc, win, n, l, d, l_sel, window, scale):
    from nsa_lib.subject.attention.fused.kernels.whole import whole_forward

    (batch, heads, length, _), v = q.shape, keys_values[1]
    whole_forward[batch * heads, cdiv(length, short.tile_rows(q, l_sel))](
        q, *keys_values, gates, outputs, lse, words, out, *strides(q, *keys_values),
        length, v.shape[2], heads, window, batch * heads * length, scale, CMP=cmp, SLC=slc, WIN=win,
        M=short.tile_rows(q, l_sel), **_choice(n, l, d, l_sel), **widths(q, v), **_FORWARD[tile_class(q, v)],
    )  # fmt: skip


def _choice(n: int, l: int, d: int, l_sel: int) -> dict[str, int]:
    # Relative to the largest p, each of a block's l_sel / d keys counts at most l / d times.
    return {"STRIDE": d, "OFFSET": l - 1, "SHIFT": shift(l_sel // d * (l // d)), **sizes(n, l, d, l_sel)}


@op(
    "whole_key_gradient(Tensor q, Tensor[] keys_values, Tensor words, Tensor d_out, Tensor state, Tensor(a!)[] pairs, "
    "int cmp, int slc, int win, int l, int d, int l_sel, int window, float scale)"
)
def _key_gradient(q, keys_values, words, d_out, state, pairs, cmp, slc, win, l, d, l_sel, window, scale):
    from nsa_lib.subject.attention.fused.kernels.whole import whole_key_gradient

    (batch, heads, length, _), (groups, keys), v = q.shape, keys_values[0].shape[1:3], keys_values[1]
    tiles = _KEY_GRADIENT[tile_class(q, v)]
    programs = cdiv(keys, tiles["BN"]) + cdiv(length, l_sel) + cdiv(length, tiles["BN"])
    whole_key_gradient[batch * groups, programs](
        q, d_out, state, *keys_values, words, *pairs, *strides(q, *keys_values),
        length, keys, heads, window, batch * heads * length, scale, CMP=cmp, SLC=slc, WIN=win, STRIDE=d, OFFSET=l - 1,
        BS=l_sel, GS=heads // groups, TQ=short.tile_rows(q, l_sel), **widths(q, v), **tiles,
    )  # fmt: skip
