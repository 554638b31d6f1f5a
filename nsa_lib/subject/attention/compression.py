"""The compressed branch: each block of keys and values becomes one token, and queries attend to those tokens.

Letters: B batch, T queries, H heads, G groups, D head width, C compressed tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nsa_lib.subject.attention.tables import table


class CompressionMLP(nn.Module):
    """phi of Eq. 7: mix(SiLU(reduce(flatten(block + position)))), shared by the groups, no biases."""

    def __init__(self, l: int, width: int):
        super().__init__()
        self.position = nn.Parameter(torch.randn(l, width) / width**0.5)
        self.reduce = nn.Linear(l * width, width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)

    def forward(self, blocks: torch.Tensor) -> torch.Tensor:
        """Compress blocks of tokens, [..., l, D] -> [..., D]."""
        hidden = self.reduce((blocks + self.position).flatten(-2))
        return self.mix(nn.functional.silu(hidden))


def mean(blocks: torch.Tensor) -> torch.Tensor:
    """Compress blocks of tokens to their mean, [..., l, D] -> [..., D]."""
    return blocks.mean(dim=-2)


def compress(x: torch.Tensor, phi: Callable[[torch.Tensor], torch.Tensor], *, l: int, d: int) -> torch.Tensor:
    """Compress overlapping blocks: token i of the result is phi(x[i*d : i*d+l]) (Eq. 7).

    Args:
        x: keys before rotation, or values, [B, G, T, D].
        phi: [..., l, D] -> [..., D].
        l: tokens in a block.
        d: tokens from one block to the next.

    Returns:
        [B, G, C, D] with C = floor((T - l) / d) + 1, and 0 if T < l.
    """
    if x.shape[2] < l:
        return x[:, :, :0]
    if l == d and x.shape[2] % l == 0:  # blocks side by side are a view, and so is their gradient
        return phi(x.unflatten(2, (-1, l)))
    return phi(x.unfold(2, l, d).transpose(-1, -2))


def compressed_probabilities(
    q: torch.Tensor, k_cmp: torch.Tensor, *, l: int, d: int, scale: float | None = None
) -> torch.Tensor:
    """Return p_cmp = softmax(q k_cmpᵀ scale) over the blocks that have ended at the query (Eq. 8).

    The logits and the result are float32 at least: selection ranks sums of these numbers, and bfloat16 logits of 100
    would be off by a quarter.

    Args:
        q: rotated queries, [B, H, T, D].
        k_cmp: rotated compressed keys, [B, G, C, D].
        l: tokens in a block.
        d: tokens from one block to the next.
        scale: of the logits; 1/√D by default.

    Returns:
        [B, H, T, C]; a row that sees no block is 0.
    """
    (batch, heads, length, width), (groups, blocks) = q.shape, k_cmp.shape[1:3]
    dtype = torch.promote_types(q.dtype, torch.float32)
    if blocks == 0:
        return q.new_zeros(batch, heads, length, 0, dtype=dtype)
    share = heads // groups
    bias = visibility_bias(length, blocks, l, d, dtype, q.device)
    logits = torch.baddbmm(
        bias.repeat(share, 1) if share > 1 else bias,
        q.reshape(batch * groups, share * length, width).to(dtype),
        k_cmp.reshape(batch * groups, blocks, width).to(dtype).mT,
        alpha=width**-0.5 if scale is None else scale,
    )
    p = logits.softmax(dim=-1).view(batch, heads, length, blocks)
    return p * sees_a_block(length, l, dtype, q.device)


@table
def visibility_bias(length: int, blocks: int, l: int, d: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return 0 where query t sees block i, i*d + l - 1 <= t, and -inf elsewhere, [T, C].

    A row that sees none is 0 everywhere, so that its softmax is finite; `sees_a_block` clears it.
    """
    ends = torch.arange(blocks, device=device) * d + l - 1
    queries = torch.arange(length, device=device)
    hidden = (ends > queries[:, None]) & (queries[:, None] >= l - 1)
    return torch.zeros(length, blocks, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


@table
def sees_a_block(length: int, l: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return 1 for the queries that see at least one block, else 0, [T, 1]."""
    return (torch.arange(length, device=device) >= l - 1).to(dtype)[:, None]


def mix_compressed(p_cmp: torch.Tensor, v_cmp: torch.Tensor) -> torch.Tensor:
    """Return p_cmp v_cmp in the values' dtype, [B, H, T, C] and [B, G, C, d_v] -> [B, H, T, d_v]."""
    (batch, heads, length, blocks), groups = p_cmp.shape, v_cmp.shape[1]
    p = p_cmp.to(v_cmp.dtype).view(batch, groups, heads // groups * length, blocks)
    return (p @ v_cmp).view(batch, heads, length, v_cmp.shape[-1])


def compressed_attention(
    q: torch.Tensor, k_cmp: torch.Tensor, v_cmp: torch.Tensor, *, l: int, d: int, scale: float | None = None
) -> torch.Tensor:
    """Attend to the compressed tokens, softmax(q k_cmpᵀ scale) v_cmp (Eq. 8); a row that sees none gives 0.

    Args and shapes as in `compressed_probabilities`; v_cmp is [B, G, C, d_v], the result [B, H, T, d_v].
    """
    return mix_compressed(compressed_probabilities(q, k_cmp, l=l, d=d, scale=scale), v_cmp)
