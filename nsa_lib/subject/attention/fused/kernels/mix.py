"""The branches' outputs weighted by their gates (Eq. 5), where no branch is left to do it at its end."""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.tile import load_rows, store_rows


@triton.jit(do_not_specialize=["rows"])
def mix_forward(
    GATES, OUTPUTS, OUT, rows, BRANCHES: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """Write the sum of gate times output from OUTPUTS [branches, rows, E]. Grid (tiles of rows,)."""
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    valid = r < rows
    out = tl.zeros((R, EP), tl.float32)
    for branch in tl.static_range(BRANCHES):
        x = load_rows(OUTPUTS + tl.cast(rows, tl.int64) * branch * E, E, r, valid, E, EP)
        gate = tl.load(GATES + r * BRANCHES + branch, mask=valid, other=0.0).to(tl.float32)
        out += gate[:, None] * x.to(tl.float32)
    store_rows(OUT, E, r, valid, out, E, EP)
