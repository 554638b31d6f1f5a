"""Backward, query by query (kernels/rows.py): the state of the rows, the gradient of the gates, and dq.

The state of a row is its log2-sum-exp, less log2 of its gate, and delta = sum(o * dOut): all that a gradient of keys
needs beside dOut of the mixed output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nsa_lib.subject.attention.fused import band
from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, empty_by_token, power_of_two, strides, tile_class, widths
from nsa_lib.subject.attention.fused.short import tile_rows

_TILES = {
    "narrow": {"BN": 64, "num_warps": 4, "num_stages": 3},
    "wide": {"BN": 64, "num_warps": 4, "num_stages": 2},
    "float32": {"BN": 32, "num_warps": 4, "num_stages": 1},
}
_STATE_TOKENS = 8
_STATE_HEADS = 16
"""Most heads of a tile of the state: with 8 tokens, rows lie together as read and eight at a time as written."""


def gradient(
    q: torch.Tensor,
    d_out: torch.Tensor,
    outputs: torch.Tensor,
    lse: torch.Tensor,
    gates: torch.Tensor | None,
    keys_values: Sequence[torch.Tensor | None],
    words: torch.Tensor | None,
    places: Sequence[int],
    *,
    stride: int,
    offset: int,
    l_sel: int,
    window: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return dq by the branches that are walked here, the state [branches, B, H, 2, T] and the gates' gradient.

    Args:
        q, d_out, outputs, lse: of forward, laid out by token.
        gates: [B, H, T, branches], laid out by token; None for gates of 1.
        keys_values: k_cmp, v_cmp, k_slc, v_slc, k_win, v_win; None for a branch that is off.
        words: the selected blocks as bits: with them the selected branch is walked here, and all by one launch.
        places: of the three branches in `outputs`, -1 for one that is off.
        stride, offset, l_sel, window, scale: of bands and blocks.
    """
    state = torch.empty(*lse.shape[:-1], 2, lse.shape[-1], dtype=lse.dtype, device=lse.device)
    d_gates = None if gates is None else torch.empty_like(gates)
    dq = empty_by_token(q, q.shape[-1])
    sizes = (stride, offset, l_sel, window, scale)
    if words is None:
        _by_band(q, d_out, outputs, lse, gates, keys_values, state, d_gates, dq, *places, *sizes)
    else:
        _at_once(q, d_out, outputs, lse, gates, keys_values, words, state, d_gates, dq, *places, *sizes)
    return dq, state, d_gates


@op(
    "row_gradient_by_band(Tensor q, Tensor d_out, Tensor outputs, Tensor lse, Tensor? gates, Tensor?[] keys_values, "
    "Tensor(a!) state, Tensor(b!)? d_gates, Tensor(c!) dq, int cmp, int slc, int win, int stride, int offset, "
    "int l_sel, int window, float scale)"
)
def _by_band(
    q, d_out, outputs, lse, gates, keys_values, state, d_gates, dq, cmp, slc, win, stride, offset, l_sel, window, scale
):  # fmt: skip
    """A launch for the state, and one for each band: faster than one for all where launches do not count."""
    from nsa_lib.subject.attention.fused.kernels.rows import row_state

    (branches, batch, heads, length, e), gated = outputs.shape, gates is not None
    together = min(_STATE_HEADS, power_of_two(heads, 1))
    row_state[cdiv(length, _STATE_TOKENS), cdiv(heads, together), batch](
        d_out, outputs, lse, gates if gated else d_out, state, d_gates if gated else d_out, length, heads,
        batch * heads * length, BRANCHES=branches, GATED=gated, E=e, EP=power_of_two(e), M=_STATE_TOKENS,
        HEADS=together, num_warps=4,
    )  # fmt: skip
    k_cmp, v_cmp, _, _, k_win, v_win = keys_values
    if cmp >= 0:
        band.launch_query_gradient(q, k_cmp, v_cmp, d_out, state[cmp], dq, False, stride, offset, 0, scale)
    if win >= 0:
        band.launch_query_gradient(q, k_win, v_win, d_out, state[win], dq, cmp >= 0, 1, 0, window, scale)


@op(
    "row_gradient(Tensor q, Tensor d_out, Tensor outputs, Tensor lse, Tensor? gates, Tensor?[] keys_values, "
    "Tensor words, Tensor(a!) state, Tensor(b!)? d_gates, Tensor(c!) dq, int cmp, int slc, int win, int stride, "
    "int offset, int l_sel, int window, float scale)"
)
def _at_once(
    q, d_out, outputs, lse, gates, keys_values, words, state, d_gates, dq, cmp, slc, win, stride, offset, l_sel, window,
    scale,
):  # fmt: skip
    from nsa_lib.subject.attention.fused.kernels.rows import row_gradient

    (batch, heads, length, _), v = q.shape, outputs[0]
    tensors = [q if x is None else x for x in keys_values]
    groups = next(x.shape[1] for x in keys_values if x is not None)
    rows = tile_rows(q, l_sel)
    row_gradient[batch * heads, cdiv(length, rows)](
        q, d_out, outputs, lse, q if gates is None else gates, state, q if gates is None else d_gates, dq,
        *tensors, words, *strides(q, *tensors),
        length, tensors[0].shape[2], heads, window, batch * heads * length, scale,
        CMP=cmp, SLC=slc, WIN=win, BRANCHES=len(outputs), GATED=gates is not None,
        STRIDE=stride, OFFSET=offset, BS=l_sel, GS=heads // groups, M=rows, **widths(q, v), **_TILES[tile_class(q, v)],
    )  # fmt: skip
