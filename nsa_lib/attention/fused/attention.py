"""The whole attention after the projections, branch by branch."""

from __future__ import annotations

import torch

from nsa_lib.attention.fused.band import compressed_attention, sliding_attention
from nsa_lib.attention.fused.choice import select_blocks
from nsa_lib.attention.fused.mix import mix
from nsa_lib.attention.fused.selected import selected_attention
from nsa_lib.config import NSAConfig


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
) -> torch.Tensor:
    """Return the gated sum of the branches of `config` (Eq. 5).

    Args:
        q: rotated queries, [B, H, T, d_k].
        k_cmp: rotated compressed keys, [B, G, C, d_k]; with selection they are needed even if that branch is off.
        v_cmp: compressed values, [B, G, C, d_v].
        k_slc, v_slc, k_win, v_win: rotated keys and values, [B, G, T, width]; None for a branch that is off.
        gates: [B, H, T, branches], in the order of the config.
        config: sizes and branches.

    Returns:
        [B, H, T, d_v].
    """
    c, scale = config, config.d_k**-0.5
    outputs, lse = {}, None
    if "cmp" in c.branches:
        outputs["cmp"], lse = compressed_attention(q, k_cmp, v_cmp, l=c.l, d=c.d, scale=scale)
    if "slc" in c.branches:
        blocks = chosen_blocks(q, k_cmp, lse, config=c)
        outputs["slc"] = selected_attention(q, k_slc, v_slc, blocks, l_sel=c.l_sel, scale=scale)
    if "win" in c.branches:
        outputs["win"] = sliding_attention(q, k_win, v_win, w=c.w, scale=scale)
    return mix(gates, [outputs[branch] for branch in c.branches])


@torch.no_grad()
def chosen_blocks(
    q: torch.Tensor, k_cmp: torch.Tensor, lse: torch.Tensor | None = None, *, config: NSAConfig
) -> torch.Tensor:
    """Return what `select_blocks` does; `lse` is that of the compressed attention, made here where it is not known."""
    c, sizes = config, {"l": config.l, "d": config.d, "scale": config.d_k**-0.5}
    if lse is None:
        _, lse = compressed_attention(q, k_cmp, k_cmp, **sizes)
    return select_blocks(q, k_cmp, lse, l_sel=c.l_sel, n_sel=c.n_sel, **sizes)
