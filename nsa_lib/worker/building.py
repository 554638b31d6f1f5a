"""The model that a case trains, as it is before the first step, and the step that one process takes with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject import distributed, training
from nsa_lib.subject.model import TinyLM, make_model
from nsa_lib.subject.own.casting import in_dtype


def built(case: CaseConfig) -> TinyLM:
    """Return the case's model, on its device."""
    torch.manual_seed(case.seed)
    # Made on the CPU and moved in its final dtype: float32 weights must not raise the peak of a bfloat16 run.
    model = make_model(case.model, grad_checkpointing=case.grad_checkpointing)
    return in_dtype(model, getattr(torch, case.dtype)).to(case.device)


def step_of(case: CaseConfig) -> Callable[..., training.StepResult]:
    """Return the train step of a case that one process runs: of the whole batch, or of its micro-batches in turn."""
    if case.micro_batches > 1:
        return partial(distributed.accumulated_step, micro_batches=case.micro_batches, loss_chunk=case.loss_chunk)
    return partial(training.train_step, loss_chunk=case.loss_chunk)
