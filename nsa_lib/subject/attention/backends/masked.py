"""Selected attention as dense attention under a mask: the simplest backend, and the one that makes a T x T mask.

Letters: B batch, T queries, H heads, G groups, D head width, N selection blocks.
"""

from __future__ import annotations

import torch
from torch.profiler import record_function

from nsa_lib.subject.attention.protocol import ROUTE_PREFIX
from nsa_lib.subject.attention.route import named
from nsa_lib.subject.attention.sdpa import attend
from nsa_lib.subject.attention.tables import table


def masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_indices: torch.Tensor, *, l_sel: int, scale: float
) -> torch.Tensor:
    """Attend to the selected blocks through one additive mask (see `backends` for arguments and shapes)."""
    with record_function(f"{ROUTE_PREFIX}masked"):
        (batch, heads, length, _), groups = q.shape, k.shape[1]
        bias = selection_bias(block_indices, l_sel, q.dtype)
        # Groups join the batch, so that the heads of a group share one mask.
        q = named(q, f"{ROUTE_PREFIX}masked").reshape(batch * groups, heads // groups, length, -1)
        k, v = (x.reshape(batch * groups, 1, length, -1).expand(-1, heads // groups, -1, -1) for x in (k, v))
        # On CUDA some of its kernels lay the heads of a token side by side, which is no view where a group has several.
        out = attend(q, k, v, bias=bias.flatten(0, 1)[:, None], scale=scale).contiguous()
        return out.view(batch, heads, length, -1)


def selection_bias(block_indices: torch.Tensor, l_sel: int, dtype: torch.dtype) -> torch.Tensor:
    """Return 0 where a query reads a key and -inf elsewhere, [B, G, T, T], the only tensor of that size."""
    batch, groups, length, _ = block_indices.shape
    # Column 0 takes the padding, index -1, and is read by no token.
    columns = 1 - (-length // l_sel)
    blocks = torch.full((batch, groups, length, columns), -torch.inf, dtype=dtype, device=block_indices.device)
    blocks.scatter_(-1, block_indices + 1, 0.0)
    bias = blocks.index_select(-1, column_of_token(length, l_sel, block_indices.device))
    token = tokens(length, block_indices.device)
    return bias.masked_fill_(token > token[:, None], -torch.inf)


@table
def column_of_token(length: int, l_sel: int, device: torch.device) -> torch.Tensor:
    """Return the selection block of each token, plus 1, [T]."""
    return torch.arange(length, device=device) // l_sel + 1


@table
def tokens(length: int, device: torch.device) -> torch.Tensor:
    """Return the positions 0 ... T-1, [T]."""
    return torch.arange(length, device=device)
