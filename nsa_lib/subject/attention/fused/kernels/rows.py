"""Backward, query by query: what the gradients of keys need of a row, the gradient of its gates, and dq.

With gate g of a branch, output o and dOut of the mixed output, a branch's own dOut is g dOut. Nothing of that is ever
written: p g (dOut vᵀ - delta), with delta = sum(o * dOut), is the gradient of the logits, and p g = exp2(s - lse) once
log2(g) is taken off the log2-sum-exp. The delta is the gradient of the gate.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.band import query_gradient_of_band
from nsa_lib.subject.attention.fused.kernels.short import short_query_gradient
from nsa_lib.subject.attention.fused.kernels.tile import LOG2E, load_rows, store_rows


@triton.jit
def _state(
    d_out, OUTPUTS, LSE, GATES, STATE, D_GATES, place, lane, t, valid, T, rows, branch: tl.constexpr,
    BRANCHES: tl.constexpr, GATED: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """Write the state of rows for one branch, and the gradient of its gate; return log2-sum-exp and delta.

    The rows are queries t of some heads: `place` of them in [B, T, H], `lane` is b * H + h.
    """
    before = tl.cast(rows, tl.int64) * branch
    out = load_rows(OUTPUTS + before * E, E, place, valid, E, EP)
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
    lse = tl.load(LSE + before + lane * T + t, mask=valid, other=float("inf"))
    if GATED:
        gates = place * BRANCHES + branch
        gate = tl.load(GATES + gates, mask=valid, other=1.0).to(tl.float32)
        lse = tl.where(gate > 0, lse - tl.math.log2(tl.where(gate > 0, gate, 1.0)), float("inf"))
        tl.store(D_GATES + gates, delta.to(D_GATES.dtype.element_ty), mask=valid)
    state = STATE + 2 * (before + lane * T) + t
    tl.store(state, lse, mask=valid)
    tl.store(state + T, delta, mask=valid)
    return lse, delta


@triton.jit(do_not_specialize=["T", "H", "rows"])
def row_state(
    D_OUT, OUTPUTS, LSE, GATES, STATE, D_GATES, T, H, rows, BRANCHES: tl.constexpr, GATED: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, M: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Write state and gates' gradient of all branches, M tokens and HEADS heads at a time: rows as they lie in memory.

    STATE is [branches, B, H, 2, T]. Grid (tiles, tiles of heads, B).
    """
    row, b = tl.arange(0, M * HEADS), tl.program_id(2).to(tl.int64)
    t, h = tl.program_id(0) * M + row // HEADS, tl.program_id(1) * HEADS + row % HEADS
    valid = (t < T) & (h < H)
    place = (b * T + t) * H + h
    lane = b * H + h
    d_out = load_rows(D_OUT, E, place, valid, E, EP)
    for branch in tl.static_range(BRANCHES):
        _state(
            d_out, OUTPUTS, LSE, GATES, STATE, D_GATES, place, lane, t, valid, T, rows, branch, BRANCHES, GATED, E, EP
        )


@triton.jit
def _state_of_head(
    d_out, OUTPUTS, LSE, GATES, STATE, D_GATES, b, h, t, T, H, rows, branch: tl.constexpr, BRANCHES: tl.constexpr,
    GATED: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """Do as `_state` for queries t of one head."""
    place = (b * T + t) * H + h
    return _state(
        d_out, OUTPUTS, LSE, GATES, STATE, D_GATES, place, b * H + h, t, t < T, T, rows, branch, BRANCHES, GATED, E, EP
    )  # fmt: skip


@triton.jit(do_not_specialize=["T", "C", "H", "w", "rows"])
def row_gradient(
    Q, D_OUT, OUTPUTS, LSE, GATES, STATE, D_GATES, DQ, K_CMP, V_CMP, K_SLC, V_SLC, K_WIN, V_WIN, WORDS,
    q_b, q_h, q_t, kc_b, kc_h, kc_t, vc_b, vc_h, vc_t, ks_b, ks_h, ks_t, vs_b, vs_h, vs_t, kw_b, kw_h, kw_t,
    vw_b, vw_h, vw_t, T, C, H, w, rows, scale, CMP: tl.constexpr, SLC: tl.constexpr, WIN: tl.constexpr,
    BRANCHES: tl.constexpr, GATED: tl.constexpr, STRIDE: tl.constexpr, OFFSET: tl.constexpr,
    BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    PRECISION: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write state and gates' gradient of a tile of queries of one head, and dq: what takes least launches.

    CMP, SLC and WIN are the places of the branches, CMP and WIN below 0 for one that is off; the selected blocks are
    WORDS. Grid (B * H, tiles).
    """
    i = tl.num_programs(1) - 1 - tl.program_id(1)
    b, h = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    g = h // GS
    t = i * M + tl.arange(0, M)
    valid, first, last = t < T, i * M, tl.minimum(i * M + M, T) - 1
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
    d_out = load_rows(D_OUT + (b * T * H + h) * E, H * E, t, valid, E, EP)
    scale2 = scale * LOG2E
    lse, delta = _state_of_head(
        d_out, OUTPUTS, LSE, GATES, STATE, D_GATES, b, h, t, T, H, rows, SLC, BRANCHES, GATED, E, EP
    )  # fmt: skip
    word = tl.load(WORDS + (b * (H // GS) + g) * T + t, mask=valid, other=0)
    k_base, v_base = K_SLC + b * ks_b + g * ks_h, V_SLC + b * vs_b + g * vs_h
    dq = short_query_gradient(
        q, d_out, lse, delta, tl.zeros((M, DP), tl.float32), word, k_base, ks_t, v_base, vs_t, t, i, T, scale2,
        BS, D, DP, E, EP, PRECISION, M,
    )  # fmt: skip
    if CMP >= 0:
        lse, delta = _state_of_head(
            d_out, OUTPUTS, LSE, GATES, STATE, D_GATES, b, h, t, T, H, rows, CMP, BRANCHES, GATED, E, EP
        )  # fmt: skip
        dq = query_gradient_of_band(
            q, d_out, lse, delta, dq, K_CMP, V_CMP, b, g, kc_b, kc_h, kc_t, vc_b, vc_h, vc_t, t, first, last, C, 0,
            scale2, STRIDE, OFFSET, False, D, DP, E, EP, PRECISION, BN, False,
        )  # fmt: skip
    if WIN >= 0:
        lse, delta = _state_of_head(
            d_out, OUTPUTS, LSE, GATES, STATE, D_GATES, b, h, t, T, H, rows, WIN, BRANCHES, GATED, E, EP
        )  # fmt: skip
        dq = query_gradient_of_band(
            q, d_out, lse, delta, dq, K_WIN, V_WIN, b, g, kw_b, kw_h, kw_t, vw_b, vw_h, vw_t, t, first, last, T, w,
            scale2, 1, 0, True, D, DP, E, EP, PRECISION, BN, False,
        )  # fmt: skip
    store_rows(DQ + (b * T * H + h) * D, H * D, t, valid, dq * scale, D, DP)
