"""Replay, on fake tensors, the checks that run before training: they decide which blocks the allocator has free.

Of what they allocate, training holds only cuBLAS's workspaces, made here at the latest. Where those lie among what is
freed decides which blocks training finds. With blocks that the allocator never splits, that can be most of what it
reserves. The steps are those of `loop.facts_before_training`; only what is on the device is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject.attention import NSAttention
from nsa_lib.subject.attention.tables import own_tables
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.accuracy import LONGEST, pass_through_layers, selected_branch


class Parts(Protocol):
    """The listener that is told which part of a step runs."""

    def enter(self, part: str) -> None:
        """Begin a part: `forward` or `backward`."""


def before_training(model: TinyLM, case: CaseConfig, recorder: Parts) -> None:
    """Run what precedes the training of a case: its layers' routes, and the checks that it asks for."""
    if not case.model.has_reference:
        return
    attention = model.blocks[0].attention
    with own_tables():
        pass_through_layers(model, torch.empty(1, case.model.nsa.l_sel, case.model.nsa.dim))
        if case.check_attention:
            _check_attention(attention, min(case.seq_len, LONGEST), recorder)
        if case.compare_selected:
            _compare_selected(attention, case.seq_len, recorder)


def _check_attention(attention: NSAttention, length: int, recorder: Parts) -> None:
    x = torch.empty(1, length, attention.config.dim)
    _with_gradients(attention, [x], torch.empty_like(x), recorder)


def _compare_selected(attention: NSAttention, length: int, recorder: Parts) -> None:
    c = attention.config
    tensors, _, run = selected_branch(attention, torch.empty(1, length, c.dim))
    _with_gradients(run, tensors, torch.empty(*tensors[0].shape[:3], c.d_v), recorder)


def _with_gradients(
    function: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor], cotangent: torch.Tensor, recorder: Parts
) -> None:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    recorder.enter("forward")
    output = function(*leaves)
    recorder.enter("backward")
    torch.autograd.grad(output, leaves, cotangent)
    recorder.enter("forward")
