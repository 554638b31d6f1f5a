"""The selected branch, by the way that suits its shape: one of three, which compute the same.

Up to 32 blocks `short`; where a group has many heads `grouped`; otherwise `listed` (kernels/<name>.py say how).
"""

from __future__ import annotations

import torch
from torch.profiler import record_function

from nsa_lib.subject.attention.fused import grouped, listed, rows, short
from nsa_lib.subject.attention.fused.shape import aligned, by_token, empty_outputs, require, two
from nsa_lib.subject.attention.route import named
from nsa_lib.subject.config import FUSED_BLOCKS, FUSED_MOST_SELECTED

ROUTE = "nsa::selected::fused"
"""The label under which a profile shows that this backend ran."""


def selected_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_indices: torch.Tensor, *, l_sel: int, scale: float
) -> torch.Tensor:
    """Attend to the selected blocks by Triton kernels (see `backends` for arguments and shapes; int32 indices too).

    Raises ValueError for a dtype, head width, block size or number of blocks that the kernels cannot take.
    """
    require(q, k, v)
    require_blocks(l_sel, block_indices.shape[-1])
    with record_function(ROUTE):
        return _Selected.apply(named(q, ROUTE), k, v, block_indices, l_sel, scale)


def require_blocks(l_sel: int, n_sel: int) -> None:
    """Raise ValueError, naming the reason, unless the kernels can take that many blocks of that many tokens."""
    if l_sel not in FUSED_BLOCKS:
        raise ValueError(f"backend='fused': l_sel={l_sel}, accepts {', '.join(map(str, FUSED_BLOCKS))}")
    if n_sel > FUSED_MOST_SELECTED:
        raise ValueError(f"backend='fused': {n_sel} blocks a query, accepts up to {FUSED_MOST_SELECTED}")


def way(q: torch.Tensor, k: torch.Tensor, l_sel: int):
    """Return the module that computes tensors of these shapes."""
    if short.takes(k.shape[2], l_sel):
        return short
    return grouped if q.shape[1] // k.shape[1] >= grouped.FEWEST_HEADS else listed


class _Selected(torch.autograd.Function):
    """softmax(q kᵀ scale) v over the tokens of the selected blocks."""

    @staticmethod
    def forward(ctx, q, k, v, block_indices, l_sel, scale):
        q, k, v, chosen = aligned(q), aligned(k), aligned(v), block_indices.contiguous()
        outputs, lse = empty_outputs(q, v.shape[-1], 1)
        inverse = way(q, k, l_sel).forward(q, k, v, chosen, outputs[0], lse[0], l_sel, scale)
        ctx.save_for_backward(q, k, v, chosen, outputs, lse, *inverse)
        ctx.l_sel, ctx.scale = l_sel, scale
        return outputs[0]

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, chosen, outputs, lse, *inverse = ctx.saved_tensors
        d_out, here = by_token(d_out), way(q, k, ctx.l_sel)
        dq, state, _ = rows.gradient(
            q, d_out, outputs, lse, None, (None, None, k, v, None, None), inverse[0] if here is short else None,
            (-1, 0, -1), stride=1, offset=0, l_sel=ctx.l_sel, window=0, scale=ctx.scale,
        )  # fmt: skip
        pair = here.backward(q, k, v, chosen, d_out, state[0], inverse, dq, False, ctx.l_sel, ctx.scale)
        return dq, *two(pair, k, v), None, None, None
