"""Faults of one rank among several: it waits for others in vain, computes something else, or is slow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import distributed

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.faults import FAULT_RANK, FAULT_STEP, strikes_at_call
from nsa_lib.subject import training
from nsa_lib.subject.attention.module import NSAttention
from nsa_lib.subject.distributed import own_part
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import loop
from nsa_lib.worker.faults.replacing import replaced

BITS = {4: (torch.int32, range(26, 22, -1)), 2: (torch.int16, range(10, 6, -1))}
"""By the size of an element: whole numbers of that size, and the lower bits of its exponent, the highest first."""


def hang_collective(case: CaseConfig) -> AbstractContextManager[None]:
    """Enter a collective of a group of its own, which all ranks make, in FAULT_STEP or the first step."""
    group = distributed.new_group()
    if distributed.get_rank() != FAULT_RANK:
        return nullcontext()
    return _before_forward(case, lambda: distributed.all_reduce(torch.ones(1, device=case.device), group=group))


def mismatched_shapes(case: CaseConfig) -> AbstractContextManager[None]:
    """Reduce 3 elements in the forward pass of FAULT_STEP, where the others enter their next collective."""
    return _before_forward(case, lambda: distributed.all_reduce(torch.ones(3, device=case.device)))


def _before_forward(case: CaseConfig, strike: Callable[[], object]) -> AbstractContextManager[None]:
    hidden, calls, struck_at = TinyLM.hidden, 0, strikes_at_call(case.fault)

    def forward(model: TinyLM, tokens: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == struck_at:
            strike()
        return hidden(model, tokens)

    return replaced(forward, "hidden", TinyLM)


def slow_rank(case: CaseConfig) -> AbstractContextManager[None]:
    """Compute every second attention twice, which makes half as much again; the second result is thrown away."""
    original, calls = NSAttention.forward, 0

    def forward(layer: NSAttention, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls % 2:
            with torch.no_grad():
                original(layer, x)
        return original(layer, x)

    return replaced(forward, "forward", NSAttention)


def flipped_bit(case: CaseConfig) -> AbstractContextManager[None]:
    """Flip a bit of the largest element of the head's gradient in FAULT_STEP, when the ranks have averaged it."""
    original, calls = training.grad_norm, 0

    def norm(model: TinyLM) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == FAULT_STEP:
            _flip(own_part(model.head.weight.grad))
        return original(model)

    return replaced(norm, "grad_norm", training)


def _flip(gradient: torch.Tensor) -> None:
    """Set the highest unset one of the lower exponent bits of the largest element."""
    kind, bits = BITS[gradient.element_size()]
    flat = gradient.view(-1)
    element = flat[flat.abs().argmax()].view(kind)
    bit = next(bit for bit in bits if not int(element) >> bit & 1)
    element.bitwise_xor_(1 << bit)


def other_data(case: CaseConfig) -> AbstractContextManager[None]:
    """Train on the sequences of the rank before."""

    def sequences(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.chunk(case.ranks)[FAULT_RANK - 1]

    return replaced(sequences, "own_sequences", loop)


def other_seed(case: CaseConfig) -> AbstractContextManager[None]:
    """Seed the weights with another number."""
    original = torch.manual_seed
    return replaced(lambda seed: original(seed + 1), "manual_seed", torch)
