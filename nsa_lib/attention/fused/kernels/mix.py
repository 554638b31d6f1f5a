"""The branches' outputs weighted by their gates (Eq. 5), and the gradient of that. A row is one head of one token."""

import triton
import triton.language as tl

from nsa_lib.attention.fused.kernels.tile import load_rows, store_rows


@triton.jit(do_not_specialize=["rows"])
def mix_forward(GATES, A, B, C, OUT, rows, BRANCHES: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, R: tl.constexpr):
    """Write gate 0 * A + gate 1 * B + gate 2 * C, as many as there are branches. Grid (tiles of rows,)."""
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    valid = r < rows
    out = tl.zeros((R, EP), tl.float32)
    for branch in tl.static_range(BRANCHES):
        x = load_rows(A if branch == 0 else (B if branch == 1 else C), E, r, valid, E, EP)
        gate = tl.load(GATES + r * BRANCHES + branch, mask=valid, other=0.0).to(tl.float32)
        out += gate[:, None] * x.to(tl.float32)
    store_rows(OUT, E, r, valid, out, E, EP)


@triton.jit(do_not_specialize=["rows"])
def mix_backward(
    GATES, A, B, C, D_OUT, D_GATES, D_A, D_B, D_C, rows, BRANCHES: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    """Write the gradient of each gate, sum(dOut * x), and of each output, gate * dOut. Grid (tiles of rows,)."""
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    valid = r < rows
    d_out = load_rows(D_OUT, E, r, valid, E, EP).to(tl.float32)
    for branch in tl.static_range(BRANCHES):
        x = load_rows(A if branch == 0 else (B if branch == 1 else C), E, r, valid, E, EP)
        gate = tl.load(GATES + r * BRANCHES + branch, mask=valid, other=0.0).to(tl.float32)
        d_gate = tl.sum(d_out * x.to(tl.float32), 1)
        tl.store(D_GATES + r * BRANCHES + branch, d_gate.to(D_GATES.dtype.element_ty), mask=valid)
        d_x = D_A if branch == 0 else (D_B if branch == 1 else D_C)
        store_rows(d_x, E, r, valid, gate[:, None] * d_out, E, EP)
