"""Rotary position embedding by one launch each way (kernels/rope.py): the plain one takes five."""

from __future__ import annotations

import torch

from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, empty_by_token, power_of_two, require, strides
from nsa_lib.subject.attention.rope import rotation

_ROWS = 64


def apply_rope(x: torch.Tensor, *, base: float = 10000.0, stride: int = 1, offset: int = 0) -> torch.Tensor:
    """Rotate row i of x [B, heads, T, D] to position i * stride + offset, as `attention.apply_rope`; laid out by token.

    Raises ValueError for a dtype or width that the kernels cannot take.
    """
    require(x)
    length, width = x.shape[-2:]
    return _Rotate.apply(x, rotation(length, width, base, stride, offset, torch.float32, x.device))


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the rotation back, and needs nothing of x."""

    @staticmethod
    def forward(ctx, x, table):
        ctx.save_for_backward(table)
        return _rotated(x, table, 1)

    @staticmethod
    def backward(ctx, gradient):
        return _rotated(gradient, *ctx.saved_tensors, -1), None


def _rotated(x: torch.Tensor, table: torch.Tensor, direction: int) -> torch.Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = empty_by_token(x, x.shape[-1])
    _rotate(x, table, out, direction)
    return out


@op("rotate(Tensor x, Tensor table, Tensor(a!) out, int direction)")
def _rotate(x, table, out, direction):
    from nsa_lib.subject.attention.fused.kernels.rope import rotate

    _, heads, length, width = x.shape
    rows = x[..., 0].numel()
    rotate[(cdiv(rows, _ROWS),)](
        x, table, out, *strides(x), length, heads, rows, DIRECTION=direction, D=width, DP=power_of_two(width, 1),
        R=_ROWS,
    )  # fmt: skip
