"""Give a module of a user's another dtype and leave what is complex complex."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a module whose numbers have a real dtype, as `module.to(dtype)` gives it, or the complex one beside it.

    `to` takes the imaginary part off, and with it what rotates: positions kept as complex numbers are right no more.
    Beside 16 bits that is complex64, in which torch can do everything.
    """
    beside = torch.complex128 if dtype == torch.float64 else torch.complex64

    def cast(x: Tensor) -> Tensor:
        return x.to(beside) if x.is_complex() else x.to(dtype) if x.is_floating_point() else x

    return module._apply(cast)
