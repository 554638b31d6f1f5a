"""The sliding branch: each query attends to the last w tokens, its own included, without a T x T tensor.

Letters: B batch, T queries, H heads, G groups, D head width.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from nsa_lib.subject.attention.sdpa import attend
from nsa_lib.subject.attention.tables import table


def sliding_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, w: int, scale: float | None = None
) -> torch.Tensor:
    """Attend to the last w tokens: softmax(q kᵀ scale) v over keys t-w+1 ... t.

    Queries go in blocks of w, each against its own block of keys and the one before, which hold every key in reach.

    Args:
        q: rotated queries, [B, H, T, D].
        k: rotated keys, [B, G, T, D].
        v: values, [B, G, T, d_v].
        w: window in tokens.
        scale: of the logits; 1/√D by default.

    Returns:
        [B, H, T, d_v].
    """
    (batch, heads, length, _), share = q.shape, q.shape[1] // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    if length <= w:
        return attend(q, k, v, causal=True, scale=scale)
    blocks, rest = -(-length // w), -length % w
    q = (F.pad(q, (0, 0, 0, rest)) if rest else q).unflatten(2, (blocks, w)).transpose(1, 2).flatten(0, 1)
    # w rows of padding stand before the first block; the mask hides them.
    k, v = (F.pad(x, (0, 0, w, rest)).unfold(2, 2 * w, w).permute(0, 2, 1, 4, 3).flatten(0, 1) for x in (k, v))
    bias = window_bias(batch, blocks, w, q.dtype, q.device)
    out = attend(q, k, v, bias=bias, scale=scale)
    out = out.view(batch, blocks, heads, w, -1).transpose(1, 2).flatten(2, 3)
    return out[:, :, :length] if rest else out


@table
def window_bias(batch: int, blocks: int, w: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return 0 where query i of a block sees key j of the block before and its own, else -inf.

    That is i < j <= i + w, and for the first block j >= w too: before it there is only padding. The shape is
    [batch * blocks, 1, w, 2w].
    """
    query, key = torch.arange(w, device=device)[:, None], torch.arange(2 * w, device=device)
    seen = ((key > query) & (key <= query + w)).repeat(blocks, 1, 1)
    seen[0] &= key >= w
    bias = torch.zeros(blocks, 1, w, 2 * w, dtype=dtype, device=device).masked_fill_(~seen[:, None], -torch.inf)
    return bias.repeat(batch, 1, 1, 1)
