"""The one train step that every case runs: the loss in chunks, backward, AdamW.

It knows nothing of meters. A caller that measures passes `mark`, which is called at the end of each phase.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from nsa_lib.subject.config import LOSS_CHUNK
from nsa_lib.subject.model import TinyLM

PHASES = ("forward", "backward", "optimizer")
"""Phases of a step, in order."""


class StepResult(NamedTuple):
    """What a step leaves, on the device: reading it synchronizes."""

    loss: torch.Tensor
    """Mean cross-entropy in nats, before the update."""
    grad_norm: torch.Tensor
    """2-norm of all gradients together."""


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """Return fused AdamW over the model's parameters, its state in their dtype."""
    return torch.optim.AdamW(model.parameters(), lr=lr, fused=True)


def chunked_cross_entropy(
    hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, chunk: int = LOSS_CHUNK
) -> torch.Tensor:
    """Return the mean next-token cross-entropy in nats without ever holding the logits of the whole sequence.

    Args:
        hidden: [B, T, dim].
        head: weight of the head, [vocab, dim].
        labels: the token that follows each position, [B, T] int64.
        chunk: tokens whose logits exist at a time.
    """
    return _ChunkedCrossEntropy.apply(hidden.flatten(0, 1), head, labels.flatten(), chunk)


def next_token_loss(model: nn.Module, tokens: torch.Tensor, chunk: int = LOSS_CHUNK) -> torch.Tensor:
    """Return the mean cross-entropy in nats of tokens [B, T + 1], each predicted from those before it.

    Where a user's model tells no head, its logits are there anyway, and the loss is made of them.
    """
    read, labels = model.hidden(tokens[:, :-1]), tokens[:, 1:]
    if model.head is None:
        logits = read.flatten(0, 1)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.flatten())
    return chunked_cross_entropy(read, model.head.weight, labels, chunk)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean of logsumexp(z) - z[label] with z = hidden headᵀ; its gradient is (softmax(z) - onehot(label)) / count.

    The gradients are made in forward, while a chunk's logits exist. To make the logits again in backward would take a
    product with the whole head for each chunk.
    """

    @staticmethod
    def forward(ctx, hidden, head, labels, chunk):
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        d_hidden, d_head = torch.empty_like(hidden), torch.zeros_like(head)
        for start in range(0, len(labels), chunk):
            rows, targets = hidden[start : start + chunk], labels[start : start + chunk, None]
            logits = F.linear(rows, head).to(total.dtype)
            lse = logits.logsumexp(dim=-1, keepdim=True)
            total += (lse - logits.gather(1, targets)).sum()
            d_logits = logits.sub_(lse).exp_().scatter_add_(1, targets, -torch.ones_like(lse)).to(head.dtype)
            torch.mm(d_logits, head, out=d_hidden[start : start + chunk])
            d_head.addmm_(d_logits.mT, rows)
        ctx.save_for_backward(d_hidden, d_head)
        ctx.count = len(labels)
        return total / ctx.count

    @staticmethod
    def backward(ctx, d_loss):
        d_hidden, d_head = ctx.saved_tensors
        scale = d_loss / ctx.count
        return d_hidden * scale.to(d_hidden.dtype), d_head * scale.to(d_head.dtype), None, None


def train_step(
    model: TinyLM,
    optimizer: torch.optim.Optimizer,
    tokens: torch.Tensor,
    *,
    mark: Callable[[str], None] = lambda phase: None,
    loss_chunk: int = LOSS_CHUNK,
) -> StepResult:
    """Take one step on a batch and return its loss and gradient norm, both taken before the update.

    The gradients stay until the next step, so that a caller can name the first one that is not finite.

    Args:
        model: the model in training.
        optimizer: over the model's parameters.
        tokens: [B, T + 1] int64; each position predicts the one after it.
        mark: called with "forward", "backward", "optimizer" as each phase ends.
        loss_chunk: tokens whose logits exist at a time.
    """
    result = backward_step(model, tokens, mark=mark, loss_chunk=loss_chunk)
    optimizer.step()
    mark("optimizer")
    return result


def backward_step(
    model: TinyLM,
    tokens: torch.Tensor,
    *,
    mark: Callable[[str], None] = lambda phase: None,
    loss_chunk: int = LOSS_CHUNK,
) -> StepResult:
    """Run forward and backward on a batch, as `train_step` does before its update.

    Arguments and result as in `train_step`.
    """
    model.zero_grad(set_to_none=True)
    loss = next_token_loss(model, tokens, loss_chunk)
    mark("forward")
    loss.backward()
    mark("backward")
    return StepResult(loss.detach(), grad_norm(model))


def grad_norm(model: nn.Module) -> torch.Tensor:
    """Return the 2-norm over all gradients, in float32 or wider. Raises RuntimeError if a parameter has none."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for name, gradient in gradients.items() if gradient is None]
    if missing:
        raise RuntimeError(f"no gradient reached {', '.join(missing)}")
    norms = torch.stack(torch._foreach_norm(list(gradients.values())))
    return torch.linalg.vector_norm(norms.to(torch.promote_types(norms.dtype, torch.float32)))


def first_non_finite(model: nn.Module) -> str | None:
    """Return the name of the first parameter whose gradient holds NaN or Inf, or None."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return name
    return None


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    """Return the bytes of parameters, gradients and optimizer state together; of sharded ones this rank's part."""
    held = [tensor for p in model.parameters() for tensor in (p, p.grad) if tensor is not None]
    held += [
        x
        for state in (optimizer.state.values() if optimizer else ())
        for x in state.values()
        if isinstance(x, torch.Tensor)
    ]
    own = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in held]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)
