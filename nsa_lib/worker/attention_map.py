"""What the attention of a model reads: which blocks its queries select, and how open its branch gates are.

Both come from the hidden states that each layer really reads, averaged until they are small enough to keep.

Letters: B batch, T queries, H heads, G groups, N selection blocks.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch.nn import functional as F

from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.selection_health import selection_health

MOST_BLOCKS = 64
"""Most rows and columns of what is kept of a selection. Of more blocks, neighbours are averaged."""

DIGITS = 4
"""Decimals that are kept; the charts show fewer."""


@torch.no_grad()
def attention_map(model: TinyLM, tokens: torch.Tensor) -> dict[str, object] | None:
    """Return what each layer selects and how open its branch gates are.

    None if the model's values are not finite, or its attention shows neither.

    Args:
        model: with NSA in every block, or with a user's attention.
        tokens: int64 [B, T], what the model reads.

    Returns:
        `l_sel`: tokens of a row or column of `selected`. `branches`: their names. `selected` [layer][query block][key
        block]: the share of a block's queries, over batch and groups, that select a block; with more than MOST_BLOCKS,
        the mean over neighbours; no layers where the selected branch is off. `branch_gates` [layer][head][branch]:
        their mean over batch and queries. `health` [layer]: what its selection is worth (`SelectionHealth`).
    """
    first = model.blocks[0].attention
    if not (first.can_select or first.can_show_gates):
        return None
    x, selected, branch_gates, health = model.embedding(tokens), [], [], []
    together = -(-tokens.shape[1] // (MOST_BLOCKS * first.block))
    for block in model.blocks:
        attention, read = block.attention, block.norm_attention(x)
        gates = attention.branch_gates_of(read) if attention.can_show_gates else None
        if gates is not None:
            branch_gates.append(gates.double().mean(dim=(0, 2)))
        if attention.can_select:
            blocks, sizes = attention.select(read), {"l_sel": first.block, "w": first.window_tokens}
            selected.append(_rounded(neighbours_together(selection_share(blocks, first.block), together)))
            health.append(asdict(selection_health(blocks, **sizes, gates=gates, gate_names=attention.gate_names)))
        x = block(x)
    if not (torch.isfinite(x).all() and all(torch.isfinite(gates).all() for gates in branch_gates)):
        return None
    return {
        "l_sel": first.block * together,
        "branches": list(first.gate_names),
        "selected": selected,
        "branch_gates": [_rounded(layer) for layer in branch_gates],
        "health": health,
    }


def selection_share(block_indices: torch.Tensor, l_sel: int) -> torch.Tensor:
    """Return the share of the queries of each block that select a block, over batch and groups.

    Args:
        block_indices: int64 [B, G, T, n_sel], -1 for none.
        l_sel: tokens in a block.

    Returns:
        float64 [N, N], queries by keys; the last block may hold fewer queries.
    """
    batch, groups, length, _ = block_indices.shape
    blocks = -(-length // l_sel)
    # Column 0 takes the padding, index -1.
    chosen = torch.zeros(batch, groups, length, blocks + 1, dtype=torch.float64, device=block_indices.device)
    chosen = chosen.scatter_(-1, block_indices + 1, 1.0)[..., 1:].mean(dim=(0, 1))
    rows = F.pad(chosen, (0, 0, 0, -length % l_sel)).view(blocks, l_sel, blocks).sum(dim=1)
    queries = torch.full((blocks, 1), l_sel, dtype=torch.float64, device=rows.device)
    queries[-1] = length - (blocks - 1) * l_sel
    return rows / queries


def neighbours_together(share: torch.Tensor, together: int) -> torch.Tensor:
    """Return the mean of each square of `together` rows and columns, [N, N] -> [ceil(N / together)] * 2."""
    return F.avg_pool2d(share[None], together, ceil_mode=True, count_include_pad=False)[0]


def _rounded(values: torch.Tensor) -> list:
    return values.double().round(decimals=DIGITS).tolist()
