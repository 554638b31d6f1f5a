"""The branches' outputs weighted by their gates, where no sliding branch does it at its end (kernels/mix.py)."""

from __future__ import annotations

from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, power_of_two

_ROWS = 64


@op("mix(Tensor gates, Tensor outputs, Tensor(a!) out)")
def mix(gates, outputs, out):
    """Write the sum over branches of gate times output (Eq. 5), rounded once; all laid out by token."""
    from nsa_lib.subject.attention.fused.kernels.mix import mix_forward

    (branches, *_, e), rows = outputs.shape, out[..., 0].numel()
    mix_forward[(cdiv(rows, _ROWS),)](
        gates, outputs, out, rows, BRANCHES=branches, E=e, EP=power_of_two(e, 1), R=_ROWS,
    )  # fmt: skip
