"""Attention to the keys of a band, for the compressed and the sliding branch.

Key j ends at position e_j = j * STRIDE + OFFSET; query t sees it if 0 <= t - e_j < w. For compressed keys STRIDE is d,
OFFSET l - 1 and there is no w (WINDOWED is false); for the sliding window STRIDE is 1 and OFFSET 0.

With TMA keys and values are descriptors (see `tma.py`), and their strides are not used.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.tile import (
    LOG2E,
    LOWEST,
    attend,
    key_gradient,
    load_gate,
    load_head_tile,
    load_rows,
    query_gradient,
    row_state,
    store_branch,
    store_key_gradients,
    store_rows,
)

NEVER = tl.constexpr(1 << 30)
_SIZES = ["T", "C", "H", "w"]


@triton.jit
def _ended(position, C, STRIDE: tl.constexpr, OFFSET: tl.constexpr):
    """Return how many keys end at or before a position."""
    return tl.minimum(tl.maximum((position - OFFSET + STRIDE) // STRIDE, 0), C)


@triton.jit
def _ends(j, C, STRIDE: tl.constexpr, OFFSET: tl.constexpr):
    """Return where keys j end; one that does not exist never does."""
    return tl.where(j < C, j * STRIDE + OFFSET, NEVER)


@triton.jit
def _seen(t, end, w, WINDOWED: tl.constexpr):
    """Return whether queries t see keys that end there; the two broadcast."""
    seen = t >= end
    if WINDOWED:
        seen = seen & (t < end + w)
    return seen


@triton.jit
def _key_tiles(first, last, C, w, STRIDE: tl.constexpr, OFFSET: tl.constexpr, WINDOWED: tl.constexpr, BN: tl.constexpr):
    """Return where the tiles of keys of queries first..last start, where those that all see start and end, and end."""
    end = _ended(last, C, STRIDE, OFFSET)
    whole_end = _ended(first, C, STRIDE, OFFSET) // BN * BN
    if WINDOWED:
        start = _ended(first - w, C, STRIDE, OFFSET) // BN * BN
        whole_start = tl.minimum(tl.cdiv(_ended(last - w, C, STRIDE, OFFSET), BN) * BN, end)
    else:
        start = whole_end * 0
        whole_start = start
    return start, whole_start, tl.maximum(whole_start, whole_end), end


@triton.jit
def attend_band(
    q, K, V, b, g, k_b, k_h, k_t, v_b, v_h, v_t, t, first, last, C, w, scale2, STRIDE: tl.constexpr,
    OFFSET: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    PRECISION: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Return maximum, sum and weighted values (see `attend`) of queries t, first..last, over their keys."""
    m, l = tl.full((M,), LOWEST, tl.float32), tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, EP), tl.float32)
    start, whole_start, whole_end, end = _key_tiles(first, last, C, w, STRIDE, OFFSET, WINDOWED, BN)
    if WINDOWED:
        for tile in range(start, whole_start, BN):
            k = load_head_tile(K, b, g, k_b, k_h, k_t, tile, C, BN, D, DP, False, TMA)
            v = load_head_tile(V, b, g, v_b, v_h, v_t, tile, C, BN, E, EP, False, TMA)
            ends = _ends(tile + tl.arange(0, BN), C, STRIDE, OFFSET)
            seen = _seen(t[:, None], ends[None, :], w, WINDOWED)
            m, l, acc = attend(q, k, v, m, l, acc, scale2, seen, True, PRECISION)
    for tile in range(whole_start, whole_end, BN):
        k = load_head_tile(K, b, g, k_b, k_h, k_t, tile, C, BN, D, DP, True, TMA)
        v = load_head_tile(V, b, g, v_b, v_h, v_t, tile, C, BN, E, EP, True, TMA)
        m, l, acc = attend(q, k, v, m, l, acc, scale2, t, False, PRECISION)
    for tile in range(whole_end, end, BN):
        k = load_head_tile(K, b, g, k_b, k_h, k_t, tile, C, BN, D, DP, False, TMA)
        v = load_head_tile(V, b, g, v_b, v_h, v_t, tile, C, BN, E, EP, False, TMA)
        ends = _ends(tile + tl.arange(0, BN), C, STRIDE, OFFSET)
        seen = _seen(t[:, None], ends[None, :], w, WINDOWED)
        m, l, acc = attend(q, k, v, m, l, acc, scale2, seen, True, PRECISION)
    return m, l, acc


@triton.jit
def query_gradient_of_band(
    q, d_out, lse, delta, dq, K, V, b, g, k_b, k_h, k_t, v_b, v_h, v_t, t, first, last, C, w, scale2,
    STRIDE: tl.constexpr, OFFSET: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Return dq, unscaled, plus what the keys of queries t, first..last, contribute."""
    start, whole_start, whole_end, end = _key_tiles(first, last, C, w, STRIDE, OFFSET, WINDOWED, BN)
    if WINDOWED:
        for tile in range(start, whole_start, BN):
            k = load_head_tile(K, b, g, k_b, k_h, k_t, tile, C, BN, D, DP, False, TMA)
            v = load_head_tile(V, b, g, v_b, v_h, v_t, tile, C, BN, E, EP, False, TMA)
            ends = _ends(tile + tl.arange(0, BN), C, STRIDE, OFFSET)
            seen = _seen(t[:, None], ends[None, :], w, WINDOWED)
            dq = query_gradient(q, k, v, d_out, lse, delta, dq, scale2, seen, True, PRECISION)
    for tile in range(whole_start, whole_end, BN):
        k = load_head_tile(K, b, g, k_b, k_h, k_t, tile, C, BN, D, DP, True, TMA)
        v = load_head_tile(V, b, g, v_b, v_h, v_t, tile, C, BN, E, EP, True, TMA)
        dq = query_gradient(q, k, v, d_out, lse, delta, dq, scale2, t, False, PRECISION)
    for tile in range(whole_end, end, BN):
        k = load_head_tile(K, b, g, k_b, k_h, k_t, tile, C, BN, D, DP, False, TMA)
        v = load_head_tile(V, b, g, v_b, v_h, v_t, tile, C, BN, E, EP, False, TMA)
        ends = _ends(tile + tl.arange(0, BN), C, STRIDE, OFFSET)
        seen = _seen(t[:, None], ends[None, :], w, WINDOWED)
        dq = query_gradient(q, k, v, d_out, lse, delta, dq, scale2, seen, True, PRECISION)
    return dq


@triton.jit(do_not_specialize=[*_SIZES, "rows"])
def band_forward(
    Q, K, V, OUTPUTS, LSE, GATES, MIXED, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, C, H, w, rows, scale,
    BRANCH: tl.constexpr, BRANCHES: tl.constexpr, MIX: tl.constexpr, STRIDE: tl.constexpr, OFFSET: tl.constexpr,
    WINDOWED: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    PRECISION: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Write output and log2-sum-exp of a tile of queries of one head; with MIX also the sum of gate times output.

    OUTPUTS [branches, B, T, H, E] and LSE [branches, B, H, T] hold `rows` = B * T * H rows for each branch. Grid
    (B * H, tiles).
    """
    i = tl.num_programs(1) - 1 - tl.program_id(1)  # the tiles that see the most keys start first
    b, h = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    t = i * M + tl.arange(0, M)
    valid = t < T
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
    last = tl.minimum(i * M + M, T) - 1
    m, l, acc = attend_band(
        q, K, V, b, h // GS, k_b, k_h, k_t, v_b, v_h, v_t, t, i * M, last, C, w, scale * LOG2E,
        STRIDE, OFFSET, WINDOWED, D, DP, E, EP, PRECISION, M, BN, TMA,
    )  # fmt: skip
    out = store_branch(m, l, acc, OUTPUTS, LSE, b, h, t, T, H, rows, BRANCH, E, EP)
    if MIX:
        row = b * T * H + h
        mixed = out * load_gate(GATES, row + t * H, valid, BRANCH, BRANCHES)
        for branch in tl.static_range(BRANCHES):
            if branch != BRANCH:
                other = (tl.cast(rows, tl.int64) * branch + row) * E
                out = load_rows(OUTPUTS + other, H * E, t, valid, E, EP).to(tl.float32)
                mixed += out * load_gate(GATES, row + t * H, valid, branch, BRANCHES)
        store_rows(MIXED + row * E, H * E, t, valid, mixed, E, EP)


@triton.jit(do_not_specialize=_SIZES)
def band_query_gradient(
    Q, K, V, D_OUT, STATE, DQ, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, C, H, w, scale,
    ADD: tl.constexpr, STRIDE: tl.constexpr, OFFSET: tl.constexpr, WINDOWED: tl.constexpr, GS: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr,
    BN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Write dq of a tile of queries of one head, or add it to what DQ holds. Grid (B * H, tiles)."""
    i = tl.num_programs(1) - 1 - tl.program_id(1)
    b, h = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    t = i * M + tl.arange(0, M)
    valid, row = t < T, b * T * H + h
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
    d_out = load_rows(D_OUT + row * E, H * E, t, valid, E, EP)
    lse, delta = row_state(STATE, b * H + h, t, valid, T)
    dq = query_gradient_of_band(
        q, d_out, lse, delta, tl.zeros((M, DP), tl.float32), K, V, b, h // GS, k_b, k_h, k_t, v_b, v_h, v_t,
        t, i * M, tl.minimum(i * M + M, T) - 1, C, w, scale * LOG2E,
        STRIDE, OFFSET, WINDOWED, D, DP, E, EP, PRECISION, BN, TMA,
    )  # fmt: skip
    dq *= scale
    if ADD:
        dq += load_rows(DQ + row * D, H * D, t, valid, D, DP).to(tl.float32)
    store_rows(DQ + row * D, H * D, t, valid, dq, D, DP)


@triton.jit
def band_keys(
    Q, K, V, D_OUT, STATE, PAIR, total, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, b, g, tile, part, PARTS, T, C,
    H, w, scale, STRIDE: tl.constexpr, OFFSET: tl.constexpr, WINDOWED: tl.constexpr, GS: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of a tile of keys of a group, from one of PARTS shares of the queries that see it.

    They go to PAIR, see `store_key_gradients`. With TMA Q, K, V and D_OUT are descriptors.
    """
    G = H // GS
    first = tile * BN
    j = first + tl.arange(0, BN)
    k = load_head_tile(K, b, g, k_b, k_h, k_t, first, C, BN, D, DP, False, TMA)
    v = load_head_tile(V, b, g, v_b, v_h, v_t, first, C, BN, E, EP, False, TMA)
    scale2 = scale * LOG2E
    earliest, latest = first * STRIDE + OFFSET, (tl.minimum(first + BN, C) - 1) * STRIDE + OFFSET
    start, tiles = earliest // M, tl.cdiv(T, M)
    if WINDOWED:
        tiles = tl.cdiv(tl.minimum(T, latest + w), M)
    share = tl.cdiv(tl.maximum(tiles - start, 0), PARTS)
    start = start + part * share
    end = tl.minimum(start + share, tiles)
    # In a window the tiles that all keys are seen by are few: a loop of their own costs more than it saves.
    whole_start = end if WINDOWED else tl.minimum(tl.maximum(tl.cdiv(latest, M), start), end)
    ends, o_b = _ends(j, C, STRIDE, OFFSET), tl.cast(T, tl.int64) * H * E
    dk, dv = tl.zeros((BN, DP), tl.float32), tl.zeros((BN, EP), tl.float32)
    for share_head in range(0, GS):
        h = g * GS + share_head
        lane = b * H + h
        for i in range(start, whole_start):
            t = i * M + tl.arange(0, M)
            q = load_head_tile(Q, b, h, q_b, q_h, q_t, i * M, T, M, D, DP, False, TMA)
            d_out = load_head_tile(D_OUT, b, h, o_b, E, H * E, i * M, T, M, E, EP, False, TMA)
            lse, delta = row_state(STATE, lane, t, t < T, T)
            seen = _seen(t[None, :], ends[:, None], w, WINDOWED)
            dk, dv, _ = key_gradient(q, k, v, d_out, lse, delta, dk, dv, scale2, seen, True, PRECISION)
        for i in range(whole_start, end):
            t = i * M + tl.arange(0, M)
            q = load_head_tile(Q, b, h, q_b, q_h, q_t, i * M, T, M, D, DP, False, TMA)
            d_out = load_head_tile(D_OUT, b, h, o_b, E, H * E, i * M, T, M, E, EP, False, TMA)
            lse, delta = row_state(STATE, lane, t, t < T, T)
            dk, dv, _ = key_gradient(q, k, v, d_out, lse, delta, dk, dv, scale2, t, False, PRECISION)
    store_key_gradients(PAIR, total, b, g, j, C, G, dk * scale, dv, D, DP, E, EP)


@triton.jit(do_not_specialize=[*_SIZES, "PARTS", "total"])
def band_key_gradient(
    Q, K, V, D_OUT, STATE, PAIRS, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, C, H, w, PARTS, total, scale,
    STRIDE: tl.constexpr, OFFSET: tl.constexpr, WINDOWED: tl.constexpr, GS: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of a part to PAIRS [PARTS, B * C * G * (D + E)], to be added up. Grid (B * G * PARTS, tiles)."""
    G = H // GS
    part = tl.program_id(0) % PARTS
    b, g = (tl.program_id(0) // PARTS // G).to(tl.int64), (tl.program_id(0) // PARTS % G).to(tl.int64)
    pair = PAIRS + tl.cast(total, tl.int64) * part * (D + E)
    band_keys(
        Q, K, V, D_OUT, STATE, pair, total, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, b, g, tl.program_id(1), part,
        PARTS, T, C, H, w, scale, STRIDE, OFFSET, WINDOWED, GS, D, DP, E, EP, PRECISION, M, BN, TMA,
    )  # fmt: skip
