"""How the reference keeps its numbers: exactly, or as a correct implementation in a run's dtype may keep them.

What a run may lose is the distance between a result in the one and in the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arithmetic:
    """How numbers are kept on the way."""

    wide: torch.dtype
    """Of sums, logits and angles."""
    kept: torch.dtype
    """Of what is stored between two operations, forward and backward."""
    angle_error: float = 0.0
    """Relative error of one rounding of a rotary frequency or angle."""

    @classmethod
    def of_run(cls, dtype: torch.dtype) -> Arithmetic:
        """Return that of a correct run in a dtype: storage in it, sums in float32 or better."""
        wide = torch.promote_types(dtype, torch.float32)
        return cls(wide, dtype, torch.finfo(wide).eps / 2)

    def keep(self, x: Tensor) -> Tensor:
        """Round x to what is stored, and its gradient too."""
        if self.kept == self.wide:
            return x
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x.to(self.kept).to(x.dtype)
        return _Kept.apply(x, self.kept)


EXACT = Arithmetic(torch.float64, torch.float64)


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient.to(ctx.dtype).to(gradient.dtype), None
