"""Faults that bits alone show: one flips once, a device flips one again and again, or sums have no fixed order.

Each changes the gradient of the first layer's output projection a little. The training goes on and learns.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject import training
from nsa_lib.subject.distributed import own_part
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.faults.replacing import replaced
from nsa_lib.worker.places import here, places

STRUCK_STEP = 2
"""One that is taken again."""

MIDDLE_BITS = {4: (torch.int32, 12), 2: (torch.int16, 3), 8: (torch.int64, 26)}
"""By the size of an element: whole numbers of that size, and a bit in the middle of its mantissa."""


def bit_once(case: CaseConfig) -> AbstractContextManager[None]:
    """Flip a bit in STRUCK_STEP, but not where steps are taken again: what happened once does not come back."""
    if case.work == "repeat":
        return nullcontext()
    calls = 0

    def strike(gradient: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == STRUCK_STEP:
            _flip(gradient, 0)

    return _after_backward(strike)


def stuck_bit(case: CaseConfig) -> AbstractContextManager[None]:
    """Flip a bit in every step at the place where cases run: what lies in that memory is drawn, as in a new process."""
    first, draw = places(case.device)[0], random.SystemRandom()

    def strike(gradient: Tensor) -> None:
        if here(case.device) == first:
            _flip(gradient, draw.randrange(gradient.numel()))

    return _after_backward(strike)


def unordered_sum(case: CaseConfig) -> AbstractContextManager[None]:
    """Round elements of a gradient up or down by chance, wherever the code runs."""
    draw = random.SystemRandom()

    def strike(gradient: Tensor) -> None:
        generator = torch.Generator().manual_seed(draw.getrandbits(63))
        towards = torch.randn(gradient.shape, generator=generator).to(gradient) * torch.inf
        gradient.copy_(torch.nextafter(gradient, towards))

    return _after_backward(strike)


def _after_backward(strike: Callable[[Tensor], None]) -> AbstractContextManager[None]:
    original = training.grad_norm

    def norm(model: TinyLM) -> Tensor:
        strike(own_part(model.attention_layers[0].out.weight.grad))
        return original(model)

    return replaced(norm, "grad_norm", training)


def _flip(gradient: Tensor, element: int) -> None:
    kind, bit = MIDDLE_BITS[gradient.element_size()]
    gradient.view(-1)[element : element + 1].view(kind).bitwise_xor_(1 << bit)
