"""TinyLM, the language model that a case trains. Its loss and optimizer are in `training`.

Letters: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nsa_lib.subject.attention import ATTENTIONS
from nsa_lib.subject.config import OWN, ModelConfig
from nsa_lib.subject.own.attention import OwnAttention
from nsa_lib.subject.own.model import OwnModel


class Block(nn.Module):
    """One pre-norm block: x + attention(norm(x)), then x + MLP(norm(x)) with a SiLU MLP of 4x."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dim = config.nsa.dim
        self.norm_attention = nn.LayerNorm(dim, bias=False)
        self.attention = OwnAttention(config.own) if config.attention == OWN else ATTENTIONS[config.attention](config)
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
        self.run_block = partial(run_block, is_random=config.attention == OWN)
        self.is_compiled = False
        self.embedding = nn.Embedding(config.vocab, dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.head = nn.Linear(dim, config.vocab, bias=False)
        # Logits are small at the start, so that the first loss is ln(vocab) and does not depend on the width.
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    @property
    def attention_layers(self) -> list[nn.Module]:
        """The layers whose passes and routes are recorded."""
        return [block.attention for block in self.blocks]

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the head reads, [B, T] int64 -> [B, T, dim]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = self.run_block(block, x, self.grad_checkpointing)
        return self.norm(x)

    def compile_blocks(self) -> None:
        """Run each block under torch.compile from now on.

        The compiled code is computed again as a whole. A compiler that is left to do it (torch 2.11 tried) keeps what a
        custom autograd function made, and so most of the memory that checkpointing is to save.
        """
        self.run_block = partial(self.run_block, call=torch.compile(call_block))
        self.is_compiled = True

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token, [B, T] int64 -> [B, T, vocab]; training never makes them whole."""
        return self.head(self.hidden(tokens))


def call_block(block: Block, x: torch.Tensor) -> torch.Tensor:
    """Return block(x)."""
    return block(x)


def run_block(
    block: Block,
    x: torch.Tensor,
    grad_checkpointing: bool,
    *,
    is_random: bool = False,
    call: Callable[[Block, torch.Tensor], torch.Tensor] = call_block,
) -> torch.Tensor:
    """Return block(x), by `call`; with checkpointing it keeps only x, and is computed again in backward.

    Where something in it `is_random`, as a user's attention may be, that is the same when computed again.
    """
    if not grad_checkpointing:
        return call(block, x)
    # Reentrant checkpointing puts no hook on each saved tensor; the hooks took a sixth of an eager step that waits for
    # launches. A block does not need what it lacks: keyword inputs, gradients of other inputs.
    return checkpoint(call, block, x, use_reentrant=True, preserve_rng_state=is_random)


def make_model(config: ModelConfig, *, grad_checkpointing: bool = False) -> TinyLM | OwnModel:
    """Return the model that a case trains: ours, or the user's."""
    if config.brings == "model":
        return OwnModel(config.own, grad_checkpointing=grad_checkpointing)
    return TinyLM(config, grad_checkpointing=grad_checkpointing)
