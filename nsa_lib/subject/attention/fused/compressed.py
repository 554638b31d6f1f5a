"""Launch of kernels/compressed.py: the compressed branch and the choice of blocks at once."""

from __future__ import annotations

import torch

from nsa_lib.subject.attention.fused import tma
from nsa_lib.subject.attention.fused.choice import index_bits, shift
from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, power_of_two, strides, widths
from nsa_lib.subject.config import NSAConfig

_BLOCKS = 16
_MOST_KEYS = 8
"""Compressed keys that begin in a block: those of 16 blocks are a tile."""

_MOST_RANKED = 16
"""Blocks chosen by their score: of more, seven of one set would often be among the best."""


def takes(q: torch.Tensor, config: NSAConfig) -> bool:
    """Return whether one kernel attends and chooses: each head for itself, from blocks that do not overlap."""
    c = config
    alone = c.heads == c.groups and c.l == c.d and c.l_sel // c.d <= _MOST_KEYS and 3 < c.n_sel <= 3 + _MOST_RANKED
    return alone and q.dtype != torch.float32 and max(c.d_k, c.d_v) <= 64


def attend_and_choose(
    q: torch.Tensor,
    k_cmp: torch.Tensor,
    v_cmp: torch.Tensor,
    outputs: torch.Tensor,
    lse: torch.Tensor,
    branch: int,
    config: NSAConfig,
) -> torch.Tensor:
    """Write output and log2-sum-exp of that branch; return the chosen blocks, int32 [B, H, T, n_sel]."""
    c = config
    chosen = q.new_empty(*q.shape[:3], c.n_sel, dtype=torch.int32)
    _attend_and_choose(q, k_cmp, v_cmp, outputs, lse, chosen, branch, c.d, c.l_sel, c.d_k**-0.5)
    return chosen


def _by_block(x: torch.Tensor, share: int):
    """Return a descriptor of x [B, H, C, width] that hands out the whole blocks of `share` rows, 16 at a time.

    The first row of each of them, then the second: [B, H, share, C / share, width].
    """
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, heads, keys, width = x.shape
    b, h, t, _ = x.stride()
    shape = [batch, heads, share, max(1, keys // share), width]
    return TensorDescriptor(x, shape, [b, h, t, share * t, 1], [1, 1, share, _BLOCKS, power_of_two(width)])


@op(
    "attend_and_choose(Tensor q, Tensor k, Tensor v, Tensor(a!) outputs, Tensor(b!) lse, Tensor(c!) chosen, "
    "int branch, int d, int l_sel, float scale)"
)
def _attend_and_choose(q, k, v, outputs, lse, chosen, branch, d, l_sel, scale):
    from nsa_lib.subject.attention.fused.kernels.compressed import attend_and_choose

    (batch, heads, length, _), n, share = q.shape, chosen.shape[-1], l_sel // d
    by_tma = tma.takes(k, v)
    tiles = [_by_block(x, share) for x in (k, v)] if by_tma else [k, v]
    attend_and_choose[batch * heads, cdiv(length, l_sel)](
        q, k, v, *tiles, outputs, lse, chosen, *strides(q, k, v), length, k.shape[2], heads, batch * heads * length,
        index_bits(length, l_sel), scale, BRANCH=branch, STRIDE=d, OFFSET=d - 1, R=share, SHIFT=shift(1), n=n,
        NP=power_of_two(n, 4), M=l_sel, STAGES=3 if by_tma else 2, TMA=by_tma,
        num_warps=8 if l_sel > 64 else 4, **widths(q, v),
    )  # fmt: skip
