"""The train step on several ranks: DDP, or FSDP2's `fully_shard`, around the same model, loss and optimizer.

Each rank passes its own sequences. Gradients are averaged over the ranks, so that the step is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # torch 2.5
    from torch.distributed._composable.fsdp import fully_shard

from nsa_lib.subject import training
from nsa_lib.subject.config import LOSS_CHUNK
from nsa_lib.subject.model import TinyLM


class LossOfTokens(nn.Module):
    """The model with its loss: DDP and FSDP2 act where a module is called, and a step calls this one."""

    def __init__(self, model: TinyLM, loss_chunk: int = LOSS_CHUNK):
        super().__init__()
        self.model, self.loss_chunk = model, loss_chunk

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy in nats, [B, T + 1] int64 -> []."""
        hidden = self.model.hidden(tokens[:, :-1])
        return training.chunked_cross_entropy(hidden, self.model.head.weight, tokens[:, 1:], self.loss_chunk)


def ddp(model: TinyLM, loss_chunk: int = LOSS_CHUNK) -> nn.Module:
    """Return the model's loss under DDP: a copy of the model on each rank, its gradients averaged in buckets.

    Gradients are views of the buckets, so that they take no memory besides. The weights become those of rank 0.
    """
    return DistributedDataParallel(LossOfTokens(model, loss_chunk), gradient_as_bucket_view=True)


def fsdp2(model: TinyLM, loss_chunk: int = LOSS_CHUNK) -> nn.Module:
    """Return the model's loss under FSDP2: each rank holds a part of every parameter, a block is whole while it runs.

    Make the optimizer afterwards: the model's parameters are other ones then.
    """
    kind = next(model.parameters()).device.type
    mesh = init_device_mesh(kind, (distributed.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(LossOfTokens(model, loss_chunk), mesh=mesh)


STRATEGIES: dict[str, Callable[[TinyLM, int], nn.Module]] = {"ddp": ddp, "fsdp2": fsdp2}
"""How ranks share a model, by name."""


def train_step(
    loss_of: nn.Module,
    model: TinyLM,
    optimizer: torch.optim.Optimizer,
    tokens: torch.Tensor,
    *,
    mark: Callable[[str], None] = lambda phase: None,
) -> training.StepResult:
    """Take one step with the other ranks; return this rank's loss, and the norm of the averaged gradients.

    Args:
        loss_of: what one of STRATEGIES made of the model.
        model: the model in training.
        optimizer: over the model's parameters.
        tokens: this rank's sequences, [B, T + 1] int64.
        mark: called with "forward", "backward", "optimizer" as each phase ends.
    """
    model.zero_grad(set_to_none=True)
    loss = loss_of(tokens)
    mark("forward")
    loss.backward()
    mark("backward")
    norm = whole(training.grad_norm(model))
    optimizer.step()
    mark("optimizer")
    return training.StepResult(loss.detach(), norm)


def accumulated_step(
    model: TinyLM,
    optimizer: torch.optim.Optimizer,
    tokens: torch.Tensor,
    *,
    micro_batches: int,
    loss_chunk: int = LOSS_CHUNK,
    mark: Callable[[str], None] = lambda phase: None,
) -> training.StepResult:
    """Take one step on a batch as its ranks would, by one process: their shares in turn, their gradients added up.

    Arguments and result as in `training.train_step`. Forward ends with that of the first share, backward with the last.

    Args:
        model: the model in training.
        optimizer: over the model's parameters.
        tokens: [B, T + 1] int64, B a multiple of `micro_batches`.
        micro_batches: shares of the batch.
        loss_chunk: tokens whose logits exist at a time.
        mark: called with "forward", "backward", "optimizer" as each phase ends.
    """
    model.zero_grad(set_to_none=True)
    losses = []
    for share in tokens.chunk(micro_batches):
        loss = training.next_token_loss(model, share, loss_chunk) / micro_batches
        if not losses:
            mark("forward")
        loss.backward()
        losses.append(loss.detach())
    mark("backward")
    norm = training.grad_norm(model)
    optimizer.step()
    mark("optimizer")
    return training.StepResult(torch.stack(losses).sum(), norm)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the parts of all ranks. All ranks must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this rank holds: all of it, unless it is sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
