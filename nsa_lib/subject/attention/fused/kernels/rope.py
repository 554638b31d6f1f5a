"""Rotary position embedding: each pair (i, i + D / 2) of a row is turned by the angle of its position."""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.tile import store_rows


@triton.jit(do_not_specialize=["T", "H", "rows"])
def rotate(
    X, TABLE, OUT, x_b, x_h, x_t, T, H, rows, DIRECTION: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    """Write x cos + roll(x) sin, or with DIRECTION -1 the rotation back, in float32 and rounded once.

    X is [B, H, T, D], OUT [B, T, H, D]; TABLE [2, T, D] holds cosines, and sines signed for a roll by half the width.
    Grid (tiles of rows,).
    """
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column = tl.arange(0, DP)[None, :]
    mask = (r < rows)[:, None] & (column < D)
    t = r // H % T
    x = X + (r // H // T * x_b + r % H * x_h + t * x_t)[:, None]
    angle = TABLE + t[:, None] * D + column
    cos, sin = tl.load(angle, mask=mask, other=0.0), tl.load(angle + T * D, mask=mask, other=0.0)
    here = tl.load(x + column, mask=mask, other=0.0).to(tl.float32)
    across = tl.load(x + (column + D // 2) % D, mask=mask, other=0.0).to(tl.float32)
    store_rows(OUT, D, r, r < rows, here * cos + across * sin * DIRECTION, D, DP)
