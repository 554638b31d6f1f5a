"""PyTorch's attention on fake tensors: it allocates what its CUDA kernels allocate, and computes nothing."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class FusedAttentionMode(TorchFunctionMode):
    """Let PyTorch's attention allocate what its CUDA kernels allocate, also where backward computes it again.

    A mode is off inside what it is told of. A backward that recomputes a layer would then find another attention than
    forward did, and so `torch.utils.checkpoint` would miss tensors.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3], args[3] if len(args) > 3 else kwargs.get("attn_mask"))
        if func is torch.Tensor.backward:
            with self:
                return torch.autograd.backward(args, [kwargs.pop("gradient", None)], **kwargs)
        if func is torch.autograd.backward:  # a newer torch tells modes of it too, but not of a gradient's edge
            pairs = zip(args[0], kwargs.pop("grad_tensors"), strict=True)
            told = [torch.ones_like(of) if gradient is None else gradient for of, gradient in pairs]
            with self:
                return func([torch.autograd.graph.get_gradient_edge(of) for of in args[0]], told, **kwargs)
        return func(*args, **kwargs)


class _FusedAttention(torch.autograd.Function):
    """Outputs, what is kept for backward, and the workspace, of a fused attention kernel; no values.

    The workspace is what cuDNN was seen to ask for on an H200, when the gradients are there: dq in float32, a float32
    for each row, and 256 bytes.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias):
        out, lse = q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(bias, k, q, v, lse, out)  # in the order in which PyTorch's own lets them go
        return out

    @staticmethod
    def backward(ctx, d_out):
        _, k, q, v, *_ = ctx.saved_tensors
        gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        workspace = q.new_empty(q.numel() + q[..., 0].numel() + 64, dtype=torch.float32)
        del workspace
        return *gradients, None
