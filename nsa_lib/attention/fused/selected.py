"""The selected branch, by the way that suits its shape: one of three, which compute the same.

Up to 32 blocks `short`; where a group has many heads `grouped`; otherwise `listed` (kernels/<name>.py say how).
"""

from __future__ import annotations

import torch
from torch.profiler import record_function

from nsa_lib.attention.fused import grouped, listed, short
from nsa_lib.attention.fused.shape import by_token, cdiv, require, rows
from nsa_lib.config import FUSED_BLOCKS, FUSED_MOST_SELECTED


def selected_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_indices: torch.Tensor, *, l_sel: int, scale: float
) -> torch.Tensor:
    """Attend to the selected blocks by Triton kernels (see `backends` for arguments and shapes; int32 indices too).

    Raises ValueError for a dtype, head width, block size or number of blocks that the kernels cannot take.
    """
    require(q, k, v)
    if l_sel not in FUSED_BLOCKS:
        raise ValueError(f"backend='fused': l_sel={l_sel}, accepts {', '.join(map(str, FUSED_BLOCKS))}")
    if (n := block_indices.shape[-1]) > FUSED_MOST_SELECTED:
        raise ValueError(f"backend='fused': {n} blocks a query, accepts up to {FUSED_MOST_SELECTED}")
    with record_function("nsa::selected::fused"):
        return _Selected.apply(q, k, v, block_indices, l_sel, scale)


def way(q: torch.Tensor, k: torch.Tensor, l_sel: int):
    """Return the module that computes tensors of these shapes."""
    if cdiv(k.shape[2], l_sel) <= short.MOST_BLOCKS:
        return short
    return grouped if q.shape[1] // k.shape[1] >= grouped.FEWEST_HEADS else listed


class _Selected(torch.autograd.Function):
    """softmax(q kᵀ scale) v over the tokens of the selected blocks."""

    @staticmethod
    def forward(ctx, q, k, v, block_indices, l_sel, scale):
        q, k, v, chosen = rows(q), rows(k), rows(v), block_indices.contiguous()
        out, lse, inverse = way(q, k, l_sel).forward(q, k, v, chosen, l_sel, scale)
        ctx.save_for_backward(q, k, v, chosen, out, lse, *inverse)
        ctx.l_sel, ctx.scale = l_sel, scale
        return out

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, chosen, out, lse, *inverse = ctx.saved_tensors
        way_back = way(q, k, ctx.l_sel).backward
        gradients = way_back(q, k, v, chosen, out, lse, by_token(d_out), inverse, ctx.l_sel, ctx.scale)
        return *gradients, None, None, None
