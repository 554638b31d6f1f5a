"""TinyLM, the language model that a smoke trains, and the dense causal attention that it is compared with.

Shapes: B batch, T tokens, H heads, D head width. Training (loss, optimizer) is in `training`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nsa_lib.subject.attention import NSAttention
from nsa_lib.subject.attention.rope import apply_rope
from nsa_lib.subject.attention.sdpa import attend
from nsa_lib.subject.config import ModelConfig, NSAConfig


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
            for t, width in zip(self.qkv(x).split(self.widths, dim=-1), (c.d_k, c.d_k, c.d_v))
        )
        q, k = apply_rope(q, base=c.rope_base), apply_rope(k, base=c.rope_base)
        k, v = (t.repeat_interleave(c.heads // c.groups, dim=1) if c.groups < c.heads else t for t in (k, v))
        o = attend(q, k, v, causal=True)
        return self.out(o.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One pre-norm block: x + attention(norm(x)), then x + MLP(norm(x)) with a SiLU MLP of 4x."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim = config.nsa.dim
        self.norm_attention = nn.LayerNorm(dim, bias=False)
        if config.attention == "nsa":
            self.attention = NSAttention(config.nsa, backend=config.backend)
        else:
            self.attention = DenseAttention(config.nsa)
        self.norm_mlp = nn.LayerNorm(dim, bias=False)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim, bias=False), nn.SiLU(), nn.Linear(4 * dim, dim, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output, [B, T, dim] -> [B, T, dim]."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class TinyLM(nn.Module):
    """A decoder: embedding, blocks, final norm, untied head.

    With `grad_checkpointing` each block keeps only its input and is computed again in backward.
    """

    def __init__(self, config: ModelConfig, *, grad_checkpointing: bool = False):
        super().__init__()
        dim = config.nsa.dim
        self.grad_checkpointing = grad_checkpointing
        self.run_block = run_block
        self.embedding = nn.Embedding(config.vocab, dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.head = nn.Linear(dim, config.vocab, bias=False)
        # Small logits at the start, so that the first loss is ln(vocab) and not a matter of the width.
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the head reads, [B, T] int64 -> [B, T, dim]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = self.run_block(block, x, self.grad_checkpointing)
        return self.norm(x)

    def compile_blocks(self) -> None:
        """Run each block under torch.compile from now on, with its recomputation as a part of the compiled backward."""
        self.run_block = torch.compile(run_block)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token, [B, T] int64 -> [B, T, vocab]; training never makes them whole."""
        return self.head(self.hidden(tokens))


def run_block(block: Block, x: torch.Tensor, grad_checkpointing: bool) -> torch.Tensor:
    """Return block(x); with checkpointing it keeps only x, and is computed again in backward."""
    if not grad_checkpointing:
        return block(x)
    # Reentrant: it costs no hook on each saved tensor, a sixth of an eager step that waits for launches. What it lacks
    # (keyword inputs, gradients of other inputs) a block has no use for. Nothing in a block is random.
    return checkpoint(block, x, use_reentrant=True, preserve_rng_state=False)
