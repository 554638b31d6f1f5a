"""What the attention of a model looks at: which blocks its queries select, and how open its branch gates are.

Both come from the hidden states that each layer really reads, averaged until they are small enough to keep. Letters:
B batch, T queries, H heads, G groups, N selection blocks.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from nsa_lib.subject.model import TinyLM

MOST_BLOCKS = 64
"""Rows and columns of what is kept of a selection; more blocks are averaged, neighbours together."""

DIGITS = 4
"""Decimals that are kept; the charts show fewer."""


@torch.no_grad()
def attention_map(model: TinyLM, tokens: torch.Tensor) -> dict[str, object] | None:
    """Return what each layer selects and how open its gates are, or None if the model's values are not finite.

    Args:
        model: with NSA in every block.
        tokens: int64 [B, T], what the model reads.

    Returns:
        `l_sel`, tokens of a row or column of `selected`; `branches`, their names; `selected` [layer][query block][key
        block], the share of the queries of a block, over batch and groups, that select a block, in neighbourhoods of
        them where there are more than MOST_BLOCKS (no layers where the selected branch is off); `branch_gates`
        [layer][head][branch], their mean over batch and queries.
    """
    x, selected, gates = model.embedding(tokens), [], []
    config = model.blocks[0].attention.config
    together = -(-tokens.shape[1] // (MOST_BLOCKS * config.l_sel))
    for block in model.blocks:
        attention, read = block.attention, block.norm_attention(x)
        if "slc" in attention.config.branches:
            share = selection_share(attention.select(read), config.l_sel)
            selected.append(_rounded(neighbours_together(share, together)))
        gates.append(attention.gates(read).double().mean(dim=(0, 2)))
        x = block(x)
    if not (torch.isfinite(x).all() and torch.isfinite(torch.stack(gates)).all()):
        return None
    return {
        "l_sel": config.l_sel * together,
        "branches": list(config.branches),
        "selected": selected,
        "branch_gates": [_rounded(layer) for layer in gates],
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
    """Return the mean of each square of so many rows and columns, [N, N] -> [ceil(N / together)] * 2."""
    return F.avg_pool2d(share[None], together, ceil_mode=True, count_include_pad=False)[0]


def _rounded(values: torch.Tensor) -> list:
    return values.double().round(decimals=DIGITS).tolist()
