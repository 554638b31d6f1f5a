"""The whole attention after the projections: which launch follows which, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain

import torch
from torch.profiler import record_function

from nsa_lib.subject.attention.fused import band, choice, compressed, grouped, rows, short, whole
from nsa_lib.subject.attention.fused.mix import mix
from nsa_lib.subject.attention.fused.selected import ROUTE, require_blocks, way
from nsa_lib.subject.attention.fused.shape import aligned, by_token, empty_by_token, empty_outputs, require, two
from nsa_lib.subject.attention.route import named
from nsa_lib.subject.config import BRANCHES, NSAConfig


def nsa(
    q: torch.Tensor,
    k_cmp: torch.Tensor | None,
    v_cmp: torch.Tensor | None,
    k_slc: torch.Tensor | None,
    v_slc: torch.Tensor | None,
    k_win: torch.Tensor | None,
    v_win: torch.Tensor | None,
    gates: torch.Tensor,
    *,
    config: NSAConfig,
    observe: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the gated sum of the branches of `config` (Eq. 5).

    Args:
        q: rotated queries, [B, H, T, d_k].
        k_cmp: rotated compressed keys, [B, G, C, d_k]; with selection they are needed even if that branch is off.
        v_cmp: compressed values, [B, G, C, d_v].
        k_slc, v_slc, k_win, v_win: rotated keys and values, [B, G, T, width]; None for a branch that is off.
        gates: 0 or above, [B, H, T, branches], in the order of the config.
        config: sizes and branches.
        observe: called with "mixed" and the result, which it hands back; by name also with the `branch_gates`, each
            branch's output, [B, H, T, d_v], and the `blocks` chosen, int32 [B, G, T, n_sel], or their `block_bits`,
            int32 [B, G, T], whichever the kernels keep; of groups of many heads also `by_union` (see `grouped`).

    Returns:
        [B, H, T, d_v].

    Raises ValueError for a dtype, head width, block size or number of blocks that the kernels cannot take.
    """
    selects = "slc" in config.branches
    with record_function(ROUTE) if selects else nullcontext():
        q = named(q, ROUTE) if selects else q
        return _NSA.apply(q, k_cmp, v_cmp, k_slc, v_slc, k_win, v_win, gates, config, observe)


@torch.no_grad()
def chosen_blocks(q: torch.Tensor, k_cmp: torch.Tensor, *, config: NSAConfig) -> torch.Tensor:
    """Return the blocks that each query reads, as `attention.select_blocks` of `attention.block_scores` (Eqs. 9-12).

    Scores are made in float32, and those that agree in their leading 23 - b bits count as equal, b being the bits of
    the number of blocks and 5 at least: for 1,024 blocks those within 1.2e-4 of each other. No gradient.

    Args:
        q: rotated queries, [B, H, T, d_k].
        k_cmp: rotated compressed keys, [B, G, C, d_k].
        config: sizes.

    Returns:
        int32 [B, G, T, n_sel], ascending, padded at the end with -1.
    """
    require(q, k_cmp)
    q, k_cmp = aligned(q), aligned(k_cmp)
    if whole.goes(q.shape[2], config):
        return whole.choose(q, k_cmp, config)
    outputs, lse = empty_outputs(q, q.shape[-1], 1)
    if compressed.takes(q, config):
        return compressed.attend_and_choose(q, k_cmp, k_cmp, outputs, lse, 0, config)
    band.attend(q, k_cmp, k_cmp, outputs, lse, 0, None, None, *band.compressed(config))
    return choice.choose(q, k_cmp, lse[0], config)


class _NSA(torch.autograd.Function):
    """`outputs` and `lse` hold a branch each, in the order of the config; so does the `state` that backward makes."""

    @staticmethod
    def forward(ctx, q, k_cmp, v_cmp, k_slc, v_slc, k_win, v_win, gates, config, observe):
        c = config
        q, *keys_values = (x if x is None else aligned(x) for x in (q, k_cmp, v_cmp, k_slc, v_slc, k_win, v_win))
        require(*(x for x in (q, *keys_values, gates) if x is not None))
        gates, out, (outputs, lse) = by_token(gates), empty_by_token(q, c.d_v), empty_outputs(q, c.d_v, len(c.branches))
        places = [c.branches.index(branch) if branch in c.branches else -1 for branch in BRANCHES]
        chosen, inverse = None, ()
        if "slc" in c.branches:
            require_blocks(c.l_sel, c.n_sel)
        if whole.goes(q.shape[2], c):
            inverse = (whole.forward(q, keys_values, gates, outputs, lse, out, places, c),)
        else:
            chosen, inverse = _one_by_one(q, keys_values, gates, outputs, lse, out, places, c)
        if observe is not None:
            made = dict(zip(c.branches, outputs.unbind(), strict=True))
            if "slc" in c.branches:
                made |= {"block_bits": inverse[0]} if chosen is None else {"blocks": chosen}
                if way(q, keys_values[2], c.l_sel) is grouped:
                    made["by_union"] = grouped.by_union(q, keys_values[2], chosen, inverse)
            out = observe("mixed", out, branch_gates=gates, **made)
        ctx.save_for_backward(q, *keys_values, gates, outputs, lse, chosen, *inverse)
        ctx.config, ctx.places = c, places
        return out

    @staticmethod
    def backward(ctx, d_out):
        q, *keys_values, gates, outputs, lse, chosen = ctx.saved_tensors[:11]
        inverse, (k_cmp, v_cmp, k_slc, v_slc, k_win, v_win) = ctx.saved_tensors[11:], keys_values
        c, (cmp, slc, win), scale = ctx.config, ctx.places, ctx.config.d_k**-0.5
        d_out, here = by_token(d_out), way(q, k_slc, c.l_sel) if slc >= 0 else None
        dq, state, d_gates = rows.gradient(
            q, d_out, outputs, lse, gates, keys_values, inverse[0] if here is short else None, ctx.places,
            stride=c.d, offset=c.l - 1, l_sel=c.l_sel, window=c.w, scale=scale,
        )  # fmt: skip
        if whole.goes_back(q.shape[2], c):
            pairs = whole.gradient(q, keys_values, *inverse, d_out, state, ctx.places, c)
        else:
            pairs = [None] * len(BRANCHES)
            if cmp >= 0:
                pairs[0] = band.gradient(q, k_cmp, v_cmp, d_out, state[cmp], *band.compressed(c))
            if slc >= 0:
                adds = cmp >= 0 or win >= 0
                pairs[1] = here.backward(
                    q, k_slc, v_slc, chosen, d_out, state[slc], inverse, dq, adds, c.l_sel, scale
                )  # fmt: skip
            if win >= 0:
                pairs[2] = band.gradient(q, k_win, v_win, d_out, state[win], *band.sliding(c))
        gradients = (
            (None, None) if pair is None else two(pair, k, v)
            for pair, k, v in zip(pairs, keys_values[::2], keys_values[1::2], strict=True)
        )  # fmt: skip
        return dq, *chain.from_iterable(gradients), d_gates, None, None


def _one_by_one(q, keys_values, gates, outputs, lse, out, places, config):
    """Write what forward gives, branch after branch; return the chosen blocks and what backward needs of them."""
    (k_cmp, v_cmp, k_slc, v_slc, k_win, v_win), (cmp, slc, win), c = keys_values, places, config
    chosen, inverse = None, ()
    if cmp >= 0 and slc >= 0 and compressed.takes(q, c):
        chosen = compressed.attend_and_choose(q, k_cmp, v_cmp, outputs, lse, cmp, c)
    elif cmp >= 0:
        band.attend(q, k_cmp, v_cmp, outputs, lse, cmp, None, None, *band.compressed(c))
    if slc >= 0:
        if chosen is None:
            chosen = choice.choose(q, k_cmp, lse[cmp], c) if cmp >= 0 else chosen_blocks(q, k_cmp, config=c)
        here = way(q, k_slc, c.l_sel)
        inverse = here.forward(q, k_slc, v_slc, chosen, outputs[slc], lse[slc], c.l_sel, c.d_k**-0.5)
    if win >= 0:
        band.attend(q, k_win, v_win, outputs, lse, win, gates, out, *band.sliding(c))
    else:
        mix(gates, outputs, out)
    return chosen, inverse
