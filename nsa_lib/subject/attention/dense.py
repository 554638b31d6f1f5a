"""Dense causal attention: what Native Sparse Attention is compared with.

Letters: B batch, T tokens.
"""

from __future__ import annotations

import torch
from torch import nn

from nsa_lib.subject.attention.rope import apply_rope
from nsa_lib.subject.attention.sdpa import attend
from nsa_lib.subject.config import NSAConfig


class DenseAttention(nn.Module):
    """Causal attention over all earlier tokens, with the heads and widths of an NSAConfig: the yardstick for speed."""

    def __init__(self, config: NSAConfig):
        super().__init__()
        self.config = config
        self.widths = [config.heads * config.d_k, config.groups * config.d_k, config.groups * config.d_v]
        self.qkv = nn.Linear(config.dim, sum(self.widths), bias=False)
        self.out = nn.Linear(config.heads * config.d_v, config.dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return softmax(QKᵀ/√d_k)V under a causal mask, projected: [B, T, dim] -> [B, T, dim]."""
        c = self.config
        q, k, v = (
            t.unflatten(-1, (-1, width)).transpose(1, 2)
            for t, width in zip(self.qkv(x).split(self.widths, dim=-1), (c.d_k, c.d_k, c.d_v), strict=True)
        )
        q, k = apply_rope(q, base=c.rope_base), apply_rope(k, base=c.rope_base)
        k, v = (t.repeat_interleave(c.heads // c.groups, dim=1) if c.groups < c.heads else t for t in (k, v))
        o = attend(q, k, v, causal=True)
        return self.out(o.transpose(1, 2).flatten(2))
