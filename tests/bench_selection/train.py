"""Train a model on text for a given time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.utils import clip_grad_norm_

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject import training
from nsa_lib.subject.model import TinyLM

WARM_UP_STEPS = 100
LEAST_RATE = 0.05
"""Of the learning rate, at the end."""
MOST_NORM = 1.0
"""Longer gradients are shortened to it: one sequence a step is noisy."""
CURVE_POINTS = 100


@dataclass
class Training:
    """How a training went."""

    losses: list[float] = field(default_factory=list)
    """Of each step, in nats a byte."""
    seconds: float = 0.0

    @property
    def curve(self) -> list[tuple[int, float]]:
        """The mean loss of neighbouring steps with the last of them, CURVE_POINTS at most."""
        size = max(1, math.ceil(len(self.losses) / CURVE_POINTS))
        cuts = range(0, len(self.losses), size)
        return [(at + len(part), sum(part) / len(part)) for at in cuts for part in [self.losses[at : at + size]]]


def train(model: TinyLM, batches: Iterator[torch.Tensor], case: CaseConfig, *, limit_s: float) -> Training:
    """Train for that time; the learning rate warms up over steps and falls with the time."""
    optimizer, found = training.make_optimizer(model, case.lr), []
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < limit_s or not found:
        for group in optimizer.param_groups:
            group["lr"] = case.lr * rate(len(found), min(seconds, limit_s) / max(limit_s, 1e-9))
        result = training.backward_step(model, next(batches).to(case.device), loss_chunk=case.loss_chunk)
        clip_grad_norm_(model.parameters(), MOST_NORM)
        optimizer.step()
        found.append(result.loss)
        if len(found) % 10 == 0:
            result.loss.item()  # wait for the device: the host would run ahead of the limit
    return Training([float(loss) for loss in found], time.monotonic() - began)


def rate(step: int, passed: float) -> float:
    """Return the learning rate over the greatest, after so many steps and that share of the time."""
    falling = LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * passed)) / 2
    return min(1.0, (step + 1) / WARM_UP_STEPS) * falling
