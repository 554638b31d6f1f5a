"""Faults of one GPU of a fleet, which it cannot see by itself: the same wrong bits every time, or less speed."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject import training
from nsa_lib.subject.attention.module import NSAttention
from nsa_lib.worker.faults.replacing import replaced

LOW_BIT = {4: (torch.int32, 1 << 3), 2: (torch.int16, 1)}
"""By the size of an element: whole numbers of that size, and a bit so low that rounding explains it."""

LATER_S = 1.5
"""By how much a step takes longer. It is no multiple of the step: members that share cores are quicker once others end,
and a slow one then makes up for it."""


def wrong_bit(case: CaseConfig) -> AbstractContextManager[None]:
    """Flip one low bit of the first channel of every attention's output, in every step and every time."""
    original = NSAttention.forward

    def forward(layer: NSAttention, x: torch.Tensor) -> torch.Tensor:
        output = original(layer, x)
        kind, bit = LOW_BIT[output.element_size()]
        output.detach().view(kind)[..., 0].bitwise_xor_(bit)
        return output

    return replaced(forward, "forward", NSAttention)


def slow_gpu(case: CaseConfig) -> AbstractContextManager[None]:
    """Let every step take LATER_S longer."""
    original = training.train_step

    def step(*args: object, **kwargs: object) -> training.StepResult:
        result = original(*args, **kwargs)
        time.sleep(LATER_S)
        return result

    return replaced(step, "train_step", training)
