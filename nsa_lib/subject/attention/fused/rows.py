"""Backward, query by query (kernels/rows.py): the state of the rows, the gradient of the gates, and dq.

The state of a row is its log2-sum-exp, less log2 of its gate, and delta = sum(o * dOut): all that a gradient of keys
needs beside dOut of the mixed output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nsa_lib.subject.attention.fused.band import tile_kind
from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, empty_by_token, strides, tile_class, widths
from nsa_lib.subject.attention.fused.short import tile_rows

_TILES = {
    "short": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 3},
    "narrow": {"M": 64, "BN": 64, "num_warps": 4, "num_stages": 3, "maxnreg": 168},
    "wide": {"M": 128, "BN": 64, "num_warps": 8, "num_stages": 3},
    "float32": {"M": 32, "BN": 32, "num_warps": 4, "num_stages": 1},
}

_TILES_OF_WORDS = {
    "narrow": {"BN": 64, "num_warps": 4, "num_stages": 3},
    "wide": {"BN": 64, "num_warps": 4, "num_stages": 2},
    "float32": {"BN": 32, "num_warps": 4, "num_stages": 1},
}


def gradient(
    q: torch.Tensor,
    d_out: torch.Tensor,
    outputs: torch.Tensor,
    lse: torch.Tensor,
    gates: torch.Tensor | None,
    keys_values: Sequence[torch.Tensor | None],
    words: torch.Tensor | None,
    places: Sequence[int],
    **sizes: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return dq by the branches that are walked here, the state [branches, B, H, 2, T] and the gates' gradient.

    Args:
        q, d_out, outputs, lse: of forward, laid out by token.
        gates: [B, H, T, branches], laid out by token; None for gates of 1.
        keys_values: k_cmp, v_cmp, k_slc, v_slc, k_win, v_win; None for a branch that is off.
        words: the selected blocks as bits: with them the selected branch is walked here.
        places: of the three branches in `outputs`, -1 for one that is off.
        sizes: stride, offset, l_sel, window, scale.
    """
    state = torch.empty(*lse.shape[:-1], 2, lse.shape[-1], dtype=lse.dtype, device=lse.device)
    d_gates = None if gates is None else torch.empty_like(gates)
    dq = empty_by_token(q, q.shape[-1])
    _gradient(q, d_out, outputs, lse, gates, keys_values, words, state, d_gates, dq, *places, **sizes)
    return dq, state, d_gates


@op(
    "row_gradient(Tensor q, Tensor d_out, Tensor outputs, Tensor lse, Tensor? gates, Tensor?[] keys_values, "
    "Tensor? words, Tensor(a!) state, Tensor(b!)? d_gates, Tensor(c!) dq, int cmp, int slc, int win, int stride, "
    "int offset, int l_sel, int window, float scale)"
)
def _gradient(
    q, d_out, outputs, lse, gates, keys_values, words, state, d_gates, dq, cmp, slc, win, stride, offset, l_sel, window,
    scale,
):  # fmt: skip
    from nsa_lib.subject.attention.fused.kernels.rows import row_gradient

    (batch, heads, length, _), v = q.shape, outputs[0]
    tensors = [q if x is None else x for x in keys_values]
    groups = next(x.shape[1] for x in keys_values if x is not None)
    tiles = _TILES[tile_kind(q, v)]
    if words is not None:
        tiles = {"M": tile_rows(q, l_sel), **_TILES_OF_WORDS[tile_class(q, v)]}
    row_gradient[batch * heads, cdiv(length, tiles["M"])](
        q, d_out, outputs, lse, q if gates is None else gates, state, q if gates is None else d_gates, dq,
        *tensors, q if words is None else words, *strides(q, *tensors),
        length, tensors[0].shape[2], heads, window, batch * heads * length, scale,
        CMP=cmp, SLC=slc, WIN=win, BRANCHES=len(outputs), GATED=gates is not None, SHORT=words is not None,
        STRIDE=stride, OFFSET=offset, BS=l_sel, GS=heads // groups, **widths(q, v), **tiles,
    )  # fmt: skip
