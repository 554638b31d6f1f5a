"""Rotary position embedding in the half-split layout: feature i is paired with feature i + D/2."""

from __future__ import annotations

import torch

from nsa_lib.subject.attention.tables import table


def apply_rope(x: torch.Tensor, *, base: float = 10000.0, stride: int = 1, offset: int = 0) -> torch.Tensor:
    """Rotate row i to position i * stride + offset: each pair (i, i + D/2) by the angle position / base^(2i/D).

    The rotation is done in float32 (float64 stays) and rounded once: in bfloat16 the two products would be rounded too.

    Args:
        x: [..., T, D] with D even.
        base: of the frequencies.
        stride: positions from one row to the next.
        offset: position of the first row.
    """
    length, width = x.shape[-2:]
    cos, sin = rotation(length, width, base, stride, offset, torch.promote_types(x.dtype, torch.float32), x.device)
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    """x cos + roll(x) sin. The gradient of a rotation is the rotation back, and needs nothing of x."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, gradient):
        cos, sin = ctx.saved_tensors
        return _rotate(gradient, cos, sin, -1), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: int) -> torch.Tensor:
    return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, dims=-1), sin, value=direction).to(x.dtype)


@table
def rotation(
    length: int, width: int, base: float, stride: int, offset: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return the cosines, and the sines signed for a roll by half the width, [2, length, width]."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=dtype, device=device) / width)
    positions = torch.arange(length, dtype=dtype, device=device) * stride + offset
    angles = torch.outer(positions, frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])
