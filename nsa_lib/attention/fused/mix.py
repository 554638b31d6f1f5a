"""The branches' outputs weighted by their gates (kernels/mix.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nsa_lib.attention.fused.op import op
from nsa_lib.attention.fused.shape import by_token, cdiv, power_of_two, require

_ROWS = 64


def mix(gates: torch.Tensor, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum over branches of gate times output (Eq. 5), rounded once.

    Args:
        gates: [B, H, T, branches].
        outputs: one [B, H, T, d_v] a branch, one to three.

    Returns:
        [B, H, T, d_v].
    """
    return _Mix.apply(gates, *outputs)


class _Mix(torch.autograd.Function):
    """Rows are heads of tokens, laid out by token."""

    @staticmethod
    def forward(ctx, gates, *outputs):
        require(gates, *outputs)
        tensors = [by_token(x) for x in (gates, *outputs)]
        ctx.save_for_backward(*tensors)
        out = torch.empty_like(tensors[1])  # by token, as they are
        _forward(tensors[0], tensors[1:], out)
        return out

    @staticmethod
    def backward(ctx, d_out):
        gates, *outputs = ctx.saved_tensors
        d_gates, *d_outputs = gradients = [torch.empty_like(x) for x in (gates, *outputs)]
        _backward(gates, outputs, by_token(d_out), d_gates, d_outputs)
        return tuple(gradients)


@op("mix_forward(Tensor gates, Tensor[] outputs, Tensor(a!) out)")
def _forward(gates, outputs, out):
    from nsa_lib.attention.fused.kernels.mix import mix_forward

    total = out[..., 0].numel()
    mix_forward[(cdiv(total, _ROWS),)](gates, *_three(outputs), out, total, **_constants(outputs))


@op("mix_backward(Tensor gates, Tensor[] outputs, Tensor d_out, Tensor(a!) d_gates, Tensor(b!)[] d_outputs)")
def _backward(gates, outputs, d_out, d_gates, d_outputs):
    from nsa_lib.attention.fused.kernels.mix import mix_backward

    total = d_out[..., 0].numel()
    mix_backward[(cdiv(total, _ROWS),)](
        gates, *_three(outputs), d_out, d_gates, *_three(d_outputs), total, **_constants(outputs)
    )


def _three(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return three tensors, the last one again where there are fewer: the kernel looks at as many as there are."""
    return [*tensors, *[tensors[-1]] * (3 - len(tensors))]


def _constants(outputs: Sequence[torch.Tensor]) -> dict[str, int]:
    e = outputs[0].shape[-1]
    return {"BRANCHES": len(outputs), "E": e, "EP": power_of_two(e, 1), "R": _ROWS}
