"""Checks of the training of the run's own model: its loss, its branch gates, and what its attention reads.

A loss that falls to nothing does not prove learning: with labels that are not shifted it falls too. On tokens that are
random and new in each step there is nothing to learn: the loss of an honest training stays at ln(vocab).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject import training
from nsa_lib.subject.attention import NSAttention
from nsa_lib.subject.config import NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import attention_map, data
from nsa_lib.worker.preflight.finding import Finding, at_least
from nsa_lib.worker.preflight.subject import judged_sizes

FIXED_STEPS = 20

FALL_PERCENT = 1.0
"""By how much the loss must fall on a fixed batch, as in a smoke."""

FRESH_STEPS = 100

FRESH_VOCAB = 64

FRESH_LAYERS = 2

FRESH_LR = 3e-3

FRESH_MEAN = 10
"""Steps in a row whose mean loss is judged."""

NOISE_PERCENT = 1.0
"""How far below ln(vocab) the mean of those steps may lie: some ten times what chance does."""

GATE_MOVE = 1e-3
"""By how much some branch gate of every layer must move. Branch gates start near 0.5."""

GATE_TOKENS = 64


def learning_checks(case: CaseConfig, alive: Callable[[], None]) -> Mapping[str, Callable[[], Finding]]:
    """Return the checks by name. The first one trains the model that the last one looks at."""
    trained = Training(case)
    return {
        "loss_fixed_batch": partial(loss_falls, trained, alive),
        "loss_fresh_tokens": partial(loss_stays, case, alive),
        "branch_gates_move": partial(branch_gates_move, trained),
    }


class Training:
    """The run's own model and batch, and its branch gates before any step."""

    def __init__(self, case: CaseConfig):
        torch.manual_seed(case.seed)
        model = TinyLM(case.model, grad_checkpointing=case.grad_checkpointing)
        self.model = model.to(getattr(torch, case.dtype)).to(case.device)
        self.lr = case.lr
        self.tokens = next(data.batches(case)).to(case.device)
        generator = torch.Generator().manual_seed(case.seed)
        x = torch.randn(1, GATE_TOKENS, case.model.nsa.dim, generator=generator)
        self._x = x.to(getattr(torch, case.dtype)).to(case.device)
        self.branch_gates_before = self.branch_gates()

    def branch_gates(self) -> torch.Tensor:
        """Return the branch gates on rows that stay the same, [layers, H, T, branches]: only weights can move them."""
        return torch.cat([block.attention.branch_gates_of(self._x) for block in self.model.blocks]).double()


def loss_falls(trained: Training, alive: Callable[[], None]) -> Finding:
    """Train the run's own model on one batch, and compare its first loss with its last. Its facts: `attention_map`."""
    optimizer = training.make_optimizer(trained.model, trained.lr)
    losses = []
    for _ in range(FIXED_STEPS):
        losses.append(training.train_step(trained.model, optimizer, trained.tokens).loss.item())
        alive()
    seen = map_with_mass(trained.model, trained.tokens[:, :-1])
    fall = 100 * (losses[0] - losses[-1]) / losses[0]
    detail = f"{losses[0]:.3f} to {losses[-1]:.3f} nats in {FIXED_STEPS} steps on one batch"
    return replace(at_least(round(fall, 2), FALL_PERCENT, "%", detail), facts={"attention_map": seen})


def loss_stays(case: CaseConfig, alive: Callable[[], None]) -> Finding:
    """Train a small model on new random tokens in each step: its loss must not go below ln(vocab)."""
    nsa, length = judged_sizes(case.model.nsa)
    generator = torch.Generator().manual_seed(case.seed)
    torch.manual_seed(case.seed)
    model = TinyLM(
        replace(case.model, nsa=nsa, layers=FRESH_LAYERS, vocab=FRESH_VOCAB), grad_checkpointing=case.grad_checkpointing
    )
    model = model.to(getattr(torch, case.dtype)).to(case.device)
    optimizer = training.make_optimizer(model, FRESH_LR)
    losses = []
    for _ in range(FRESH_STEPS):
        tokens = torch.randint(FRESH_VOCAB, (1, length + 1), generator=generator).to(case.device)
        losses.append(training.train_step(model, optimizer, tokens).loss.item())
        alive()
    means = [math.fsum(losses[i : i + FRESH_MEAN]) / FRESH_MEAN for i in range(FRESH_STEPS - FRESH_MEAN + 1)]
    # A loss that is no longer a number does not prove that nothing was learned; `min` would pass over it.
    lowest = min(means) if all(map(math.isfinite, means)) else math.nan
    limit = (1 - NOISE_PERCENT / 100) * math.log(FRESH_VOCAB)
    guess = f"a guess is ln({FRESH_VOCAB}) = {math.log(FRESH_VOCAB):.3f}"
    detail = f"lowest mean of {FRESH_MEAN} steps in a row of {FRESH_STEPS}; {guess}"
    return at_least(round(lowest, 3), round(limit, 3), "nats", detail)


def branch_gates_move(trained: Training) -> Finding:
    """Compare the branch gates with those before the training, in the layer where they moved least."""
    moved = (trained.branch_gates() - trained.branch_gates_before).abs().flatten(1).amax(1)
    least = int(moved.argmin())
    detail = f"largest move of a branch gate in layer {least}, which moved least of {len(moved)}"
    return at_least(float(f"{moved[least]:.3g}"), GATE_MOVE, "", detail)


def map_with_mass(model: TinyLM, tokens: torch.Tensor) -> dict[str, object] | None:
    """Return `attention_map`, and with it `branch_mass` [layer][branch]: each branch's share of the output."""
    seen = attention_map.attention_map(model, tokens)
    if seen is None:
        return None
    return seen | {"branch_mass": [shares.tolist() for shares in branch_mass(model, tokens)]}


@torch.no_grad()
def branch_mass(model: TinyLM, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Return for each layer the share of each branch in the norms of gate * output, [branches]."""
    x, shares = model.embedding(tokens), []
    for block in model.blocks:
        read = block.norm_attention(x)
        norms = torch.stack([gated_norm(block.attention, branch, read) for branch in block.attention.config.branches])
        shares.append((norms / norms.sum()).double().cpu())
        x = block(x)
    return shares


def gated_norm(attention: NSAttention, branch: str, x: torch.Tensor) -> torch.Tensor:
    """Return the norm of what one branch gives, times its gate, over all tokens and heads."""
    alone = branch_alone(attention, branch)
    alone.out = torch.nn.Identity()
    return alone(x).double().norm()


def branch_alone(attention: NSAttention, branch: str) -> NSAttention:
    """Return a layer of one branch with the weights that it has in another."""
    c: NSAConfig = attention.config
    weight = attention.branch_gates.weight
    alone = NSAttention(replace(c, branches=(branch,)), attention.backend).to(weight.dtype).to(weight.device)
    weights = {name: value for name, value in attention.state_dict().items() if name in alone.state_dict()}
    of_branch = weight.unflatten(0, (c.heads, len(c.branches)))[:, c.branches.index(branch)]
    alone.load_state_dict({**weights, "branch_gates.weight": of_branch})
    return alone
