"""Whether anomaly detection would notice: one more step, in which a gradient is NaN."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from nsa_lib.subject.model import TinyLM


def planted_nan(model: TinyLM, step: Callable[[], object]) -> dict[str, str | None]:
    """Take a step with a NaN in the gradient of what the head reads, and return what autograd said of it.

    Detection can be switched off for the backward alone, or let NaN pass; a step without a finding then proves nothing.
    Call it under the detection that is on trial, after everything else: where nobody notices, the model becomes NaN.

    Returns:
        `said`: the error, a line; None if there was none.
    """

    def spoil(module: torch.nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        output.register_hook(lambda gradient: gradient * torch.nan)

    handle = model.norm.register_forward_hook(spoil)
    try:
        with warnings.catch_warnings():
            # Where forward made what is NaN: of one that was planted it would frighten whoever reads the log.
            warnings.filterwarnings("ignore", message="Error detected in")
            step()
    except RuntimeError as error:
        if "returned nan values" not in str(error):
            raise
        return {"said": str(error).splitlines()[0]}
    finally:
        handle.remove()
    return {"said": None}
