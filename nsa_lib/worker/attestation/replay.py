"""Take some unrecorded steps of a run once more, recorded, and compare: code may behave only where it is looked at.

Nobody watches the steps of a span while they run. What they start from is copied just before, at a place that the seed
decides. When all is measured, the model is put back to there and takes the same steps again, watched as a recorded step
is, and one of them judged. On the CPU a step is deterministic: each loss and gradient norm, and all parameters and
optimizer state at the end, must come out the same to the bit. On CUDA that holds with `fused`; the plain backends use
kernels of torch whose sums have no fixed order, so where bits differ, loss and norm must agree within TOLERANCE.

Not covered: what is wrong in a few other steps alone, but for their updates (`followed`). Of n steps, k wrong ones are
met with a chance near 10 k / n.

Host memory: parameters and optimizer state once, and the tokens of the span.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nsa_lib.contract.case import REPLAYED_STEPS
from nsa_lib.subject.model import TinyLM
from nsa_lib.subject.training import StepResult

TOLERANCE = {"bfloat16": 0.02, "float16": 0.005, "float32": 0.001, "float64": 1e-9}
"""Relative difference of a loss that sums of another order may lead to within a span. Measured on an H200 in bfloat16,
five steps on: 2.5e-4 of the loss, and 2e-3 of the norm."""

NORM_TOLERANCE = 5.0
"""The same of a gradient norm, times that of the loss, in the first STEADY_STEPS; once more for each step after them.

A norm leaps: with sums in another order, an honest training on an H200 in bfloat16 had other norms by 3 % in its fifth
step, by 18 % in its tenth."""

STEADY_STEPS = 5


def span_of(steps: int, seed: int) -> range:
    """Return the steps that are taken again, from 1, among those that are neither the first nor the last."""
    inner = range(2, steps)
    length = min(REPLAYED_STEPS, len(inner))
    start = random.Random(f"replay {seed}").randint(0, len(inner) - length)
    return inner[start : start + length]


@dataclass
class Span:
    """What is known of the steps that will be taken again."""

    steps: range
    tokens: list[Tensor] = field(default_factory=list)
    results: list[tuple[float, float]] = field(default_factory=list)
    """Loss and gradient norm of each."""
    start: dict[str, Tensor] = field(default_factory=dict)
    """Parameters and optimizer state before the first."""
    end: dict[str, str] = field(default_factory=dict)
    """Those after the last; of each, a hash of its bits."""

    def before(self, step: int, model: TinyLM, tokens: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        """Copy what a step starts from, if it is one of them."""
        with _disable_current_modes():
            if step == self.steps.start:
                self.start = {name: x.detach().to("cpu", copy=True) for name, x in _state(model, optimizer).items()}
            if step in self.steps:
                self.tokens.append(tokens.to("cpu", copy=True))

    def after(
        self, step: int, loss: float, grad_norm: float, model: TinyLM, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Note what a step came to, if it is one of them."""
        if step in self.steps:
            self.results.append((loss, grad_norm))
        if self.steps and step == self.steps[-1]:
            self.end = hashes(model, optimizer)

    def again(
        self, model: TinyLM, optimizer: torch.optim.Optimizer | None, take: Callable[[int, Tensor], StepResult]
    ) -> tuple[bool, dict[str, str]]:
        """Take the steps again. Return whether all bits are the same, and what is wrong, by name, in a sentence.

        The model is changed.

        Args:
            model: the one that took them.
            optimizer: its optimizer.
            take: takes a step, given its number and tokens on the model's device.
        """
        device = next(model.parameters()).device
        with _disable_current_modes(), torch.no_grad():
            for name, x in _state(model, optimizer).items():
                if name in self.start:
                    x.copy_(self.start[name])
        now = []
        for step, tokens in zip(self.steps, self.tokens, strict=True):
            result = take(step, tokens.to(device))
            now.append((result.loss.item(), result.grad_norm.item()))
        state = hashes(model, optimizer)
        changed = [name for name, bits in self.end.items() if state.get(name) != bits]
        same = now == self.results and not changed
        wrong = self._differences(now, _tolerance(model))
        if changed and device.type == "cpu":
            shown = ", ".join(changed[:3])
            wrong[f"state after step {self.steps[-1]}"] = f"{len(changed)} of {len(state)} tensors differ: {shown}"
        return same, wrong

    def _differences(self, now: list[tuple[float, float]], tolerance: float) -> dict[str, str]:
        """Return the steps whose loss or gradient norm is further from what it was than it may be."""
        wrong = {}
        for step, (loss, norm), (loss_now, norm_now) in zip(self.steps, self.results, now, strict=True):
            norm_tolerance = NORM_TOLERANCE * tolerance * max(1, step - self.steps.start + 2 - STEADY_STEPS)
            within = abs(loss_now - loss) <= tolerance * abs(loss)
            if not (within and abs(norm_now - norm) <= norm_tolerance * abs(norm)):
                said = f"loss {loss:.9g} and gradient norm {norm:.9g}, recorded {loss_now:.9g} and {norm_now:.9g}"
                wrong[f"step {step}"] = said
        return wrong


def _tolerance(model: TinyLM) -> float:
    """Return the relative difference of a loss that is allowed: none on the CPU."""
    weight = next(model.parameters())
    return 0.0 if weight.device.type == "cpu" else TOLERANCE[str(weight.dtype).removeprefix("torch.")]


def _state(model: TinyLM, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Return parameters and optimizer state by name."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key, value in (optimizer.state.get(parameter, {}) if optimizer is not None else {}).items():
            if isinstance(value, Tensor):
                found[f"{name} {key}"] = value
    return found


def hashes(model: TinyLM, optimizer: torch.optim.Optimizer | None) -> dict[str, str]:
    """Return a hash of the bits of every parameter and of its optimizer state."""
    with _disable_current_modes():
        return {name: _hash(x) for name, x in _state(model, optimizer).items()}


def _hash(x: Tensor) -> str:
    return hashlib.sha256(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
