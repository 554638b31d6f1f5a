"""PyTorch's scaled dot-product attention, given only layouts for which its gradients are right."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: float | None = None,
    bias: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Return softmax(q kᵀ scale + bias) v, [B, H, T, D] with as many heads in k and v.

    All rows, and those of the output's gradient, are laid out without gaps first. On CUDA PyTorch hands them to cuDNN.
    cuDNN makes a plan for one layout and keeps it for the next call of the same shapes, whatever the layout of that
    call's gradient (pytorch/pytorch#141147 lets it differ from the output's). On an H200 with torch 2.11 two layouts in
    one process gave gradients that were wrong by more than their own size, and no error.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return _WithoutGaps.apply(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=scale))


class _WithoutGaps(torch.autograd.Function):
    """The identity, whose gradient is laid out without gaps."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.contiguous()
