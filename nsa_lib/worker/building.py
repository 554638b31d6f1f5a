"""The model that a case trains, as it is before the first step."""

from __future__ import annotations

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject.model import TinyLM, make_model


def built(case: CaseConfig) -> TinyLM:
    """Return the case's model, on its device."""
    torch.manual_seed(case.seed)
    # Made on the CPU and moved in its final dtype: float32 weights must not raise the peak of a bfloat16 run.
    model = make_model(case.model, grad_checkpointing=case.grad_checkpointing)
    return model.to(getattr(torch, case.dtype)).to(case.device)
