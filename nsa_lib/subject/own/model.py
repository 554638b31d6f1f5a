"""A user's model as the train step knows one: tokens to what its head reads, or to logits where it tells no head.

Letters: B batch, T tokens.
"""

from __future__ import annotations

import torch
from torch import nn

from nsa_lib.subject.config import Own
from nsa_lib.subject.own.loading import OwnError, blamed, made_module

SWITCHES = ("activation_checkpointing", "gradient_checkpointing")
"""What a model's methods that switch its checkpointing are called, with `_enable` or `_disable` behind; the newer name
of `transformers` first."""


class OwnModel(nn.Module):
    """A user's model, int64 [B, T] to logits [B, T, vocab] or to an object that has them as `.logits`.

    More logits than tokens are a padded vocabulary, as many have it for speed: the rest are of tokens that never come.
    Where it has `get_output_embeddings` and a base model, the loss is made in chunks of what its head reads; else of
    its logits. Its own checkpointing is switched on by `gradient_checkpointing_enable`, or what that is called since.
    """

    def __init__(self, own: Own, *, grad_checkpointing: bool = False):
        super().__init__()
        self.own = own
        self.inner = made_module(own)
        self.is_compiled = False
        self.norm = nn.Identity()
        """What the loss is made of passes through it, where a witness sees it."""
        self._checkpoints = False
        self.grad_checkpointing = grad_checkpointing

    @property
    def can_checkpoint(self) -> bool:
        """Whether its checkpointing can be switched on from outside; one of `transformers` may say that it cannot."""
        return self._switch is not None and getattr(self.inner, "supports_gradient_checkpointing", True)

    @property
    def _switch(self) -> str | None:
        return next((name for name in SWITCHES if hasattr(self.inner, f"{name}_enable")), None)

    @property
    def grad_checkpointing(self) -> bool:
        """Whether its checkpointing was switched on."""
        return self._checkpoints

    @grad_checkpointing.setter
    def grad_checkpointing(self, on: bool) -> None:
        if on == self._checkpoints or not self.can_checkpoint:
            return
        with blamed(self.own, "its checkpointing cannot be switched"):
            getattr(self.inner, f"{self._switch}_{'enable' if on else 'disable'}")()
        self.inner.train()  # many checkpoint in training alone
        self._checkpoints = on

    @property
    def head(self) -> nn.Linear | None:
        """The head, if it tells one that is a product with a matrix and nothing else, and a base model."""
        told = getattr(self.inner, "get_output_embeddings", lambda: None)()
        plain = isinstance(told, nn.Linear) and told.bias is None
        return told if plain and self._base is not None else None

    @property
    def _base(self) -> nn.Module | None:
        base = getattr(self.inner, "base_model", None)
        return base if isinstance(base, nn.Module) and base is not self.inner else None

    @property
    def attention_layers(self) -> list[nn.Module]:
        """The members of its longest list of modules: its layers, as far as anybody can tell."""
        lists = [module for module in self.inner.modules() if isinstance(module, nn.ModuleList)]
        return list(max(lists, key=len)) if lists else []

    def compile_blocks(self) -> None:
        """Run the whole model under torch.compile from now on."""
        (self.inner if self.head is None else self._base).compile()
        self.is_compiled = True

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what the loss is made of, int64 [B, T] -> [B, T, dim], or the logits where it tells no head."""
        if self.head is None:
            return self.norm(self._logits(tokens))
        found = self._base(tokens)
        read = found[0] if isinstance(found, tuple | list) and found else getattr(found, "last_hidden_state", found)
        if not isinstance(read, torch.Tensor):
            raise self._refusal(f"its base model gives {type(read).__name__}; accepts a tensor or .last_hidden_state")
        self._require_shape("its base model", read, (*tokens.shape, self.head.in_features), tokens.device)
        return self.norm(read)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token, int64 [B, T] -> [B, T, vocab]."""
        return self._logits(tokens)

    def _logits(self, tokens: torch.Tensor) -> torch.Tensor:
        found = self.inner(tokens)
        logits = getattr(found, "logits", found)
        if isinstance(logits, tuple | list) and logits:
            logits = logits[0]
        if not isinstance(logits, torch.Tensor):
            raise self._refusal(f"forward gives {type(logits).__name__}; accepts a tensor or .logits")
        vocab = self.own.sizes["vocab"]
        padded = logits.shape[-1] if logits.dim() == 3 and logits.shape[-1] > vocab else vocab
        self._require_shape("forward", logits, (*tokens.shape, padded), tokens.device)
        return logits

    def _require_shape(self, what: str, found: torch.Tensor, owed: tuple[int, ...], device: torch.device) -> None:
        if found.shape != owed:
            raise self._refusal(f"{what} gives shape {tuple(found.shape)}; accepts {owed}")
        if found.device != device:
            raise self._refusal(f"{what} gives device {found.device}; accepts {device}")

    def _refusal(self, why: str) -> OwnError:
        return OwnError(f"model={self.own.spec}: {why}")
