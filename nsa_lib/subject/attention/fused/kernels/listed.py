"""Selected attention block by block: the queries that chose a block are gathered against its keys and values.

Each far pair (see `inverse`) leaves a partial output with its log-sum-exp, merged afterwards with the near blocks,
which are dense tiles. Keys and values are read once; a pair costs a row of q, and a partial written and read. Backward
does the same with partial dq. Work goes in passes over some heads, from `head` on, which bounds the partials.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.tile import (
    LOG2E,
    LOWEST,
    attend,
    finish,
    key_gradient,
    load_chosen,
    load_rows,
    load_tile,
    query_gradient,
    row_state,
    store_key_gradients,
    store_rows,
)

_SIZES = ["T", "N", "H", "head"]


@triton.jit(do_not_specialize=_SIZES)
def far_forward(
    Q, K, V, ENTRIES, START, PART, PART_LSE, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, N, H, head, scale,
    n: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr,
    EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Write a block's partials, [heads, T, n, E] and log2-sum-exps. Grid (blocks from 1 on, SHARES, heads)."""
    j = tl.program_id(0) + 1
    local = tl.program_id(2).to(tl.int64)
    b, h = (head + local) // H, (head + local) % H
    g = h // GS
    bg = b * (H // GS) + g
    start = tl.load(START + bg * (N + 1) + j) + tl.program_id(1) * TQ
    end = tl.load(START + bg * (N + 1) + j + 1)
    if start < end:
        k = load_tile(K + b * k_b + g * k_h, k_t, j * BS, BS, D, DP)  # a far block is whole
        v = load_tile(V + b * v_b + g * v_h, v_t, j * BS, BS, E, EP)
        scale2 = scale * LOG2E
        q_base, part = Q + b * q_b + h * q_h, local * T * n
        for first in range(start, end, SHARES * TQ):
            place = first + tl.arange(0, TQ)
            valid = place < end
            entry = tl.load(ENTRIES + bg * T * n + place, mask=valid, other=0)
            q = load_rows(q_base, q_t, entry // n, valid, D, DP)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
            m = tl.max(s, 1)
            p = tl.math.exp2(s - m[:, None])
            l = tl.sum(p, 1)
            out = tl.dot(p.to(v.dtype), v, input_precision=PRECISION) / l[:, None]
            store_rows(PART + part * E, E, entry, valid, out, E, EP)
            tl.store(PART_LSE + part + entry, m + tl.math.log2(l), mask=valid)


@triton.jit
def _near(x, i):
    """Return the near blocks of the queries of block i, one for x = 0, 1, 2, and whether it is another than before."""
    j = tl.where(x == 0, 0, i - 2 + x)
    return j, (x == 0) | (j > 0)


@triton.jit(do_not_specialize=_SIZES)
def merge(
    Q, K, V, CHOSEN, FAR, PART, PART_LSE, OUT, LSE, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, head, scale,
    n: tl.constexpr, NP: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write output and log2-sum-exp of the queries of a block: far partials, then near blocks. Grid (blocks, heads)."""
    i = tl.program_id(0)
    local = tl.program_id(1).to(tl.int64)
    b, h = (head + local) // H, (head + local) % H
    g = h // GS
    bg = b * (H // GS) + g
    t = i * BS + tl.arange(0, BS)
    valid = t < T
    block = load_chosen(CHOSEN, bg * T + t, valid, n, NP)
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
    scale2 = scale * LOG2E
    m, l = tl.full((BS,), LOWEST, tl.float32), tl.zeros((BS,), tl.float32)
    acc = tl.zeros((BS, EP), tl.float32)
    if i > 2:
        slots = tl.load(FAR + bg * T + t, mask=valid, other=0)
        for z in tl.range(0, n, num_stages=STAGES):
            far = ((slots >> z) & 1) == 1
            pair = (local * T + t) * n + z
            part_lse = tl.load(PART_LSE + pair, mask=far, other=float("-inf"))
            part = load_rows(PART, E, pair, far, E, EP).to(tl.float32)
            m_new = tl.maximum(m, part_lse)
            shrink, weight = tl.math.exp2(m - m_new), tl.math.exp2(part_lse - m_new)
            m, l = m_new, l * shrink + weight
            acc = acc * shrink[:, None] + part * weight[:, None]
    k_base, v_base = K + b * k_b + g * k_h, V + b * v_b + g * v_h
    for x in range(0, 3):
        j, another = _near(x, i)
        if another:
            key = j * BS + tl.arange(0, BS)
            k, v = load_rows(k_base, k_t, key, key < T, D, DP), load_rows(v_base, v_t, key, key < T, E, EP)
            selects = tl.max((block == j).to(tl.int32), 1) > 0
            seen = selects[:, None] & (t[:, None] >= key[None, :])
            m, l, acc = attend(q, k, v, m, l, acc, scale2, seen, True, PRECISION)
    out, lse = finish(m, l, acc)
    store_rows(OUT + (b * T * H + h) * E, H * E, t, valid, out, E, EP)
    tl.store(LSE + (b * H + h) * T + t, lse, mask=valid)


@triton.jit(do_not_specialize=[*_SIZES, "total"])
def block_gradient(
    Q, K, V, D_OUT, STATE, CHOSEN, ENTRIES, START, PART, PAIR, PAIR_0,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, N, H, head, total, scale,
    n: tl.constexpr, NP: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of a block, from all heads of its group, and the partial dq of its far pairs [heads, T, n, D].

    They go to PAIR (see `store_key_gradients`). Every query chose block 0, so SHARES programs share it; they write to
    PAIR_0 [B * G, SHARES, BS, D + E], to be added up. Grid (groups of the pass, SHARES + blocks - 1).
    """
    program = tl.program_id(1)
    G = H // GS
    first_group = head // GS
    local = tl.program_id(0).to(tl.int64)
    bg = first_group + local
    b, g = bg // G, bg % G
    is_0 = program < SHARES
    j = tl.where(is_0, 0, program - SHARES + 1)
    start, end = tl.load(START + bg * (N + 1) + j), tl.load(START + bg * (N + 1) + j + 1)
    key = j * BS + tl.arange(0, BS)
    k = load_rows(K + b * k_b + g * k_h, k_t, key, key < T, D, DP)
    v = load_rows(V + b * v_b + g * v_h, v_t, key, key < T, E, EP)
    scale2 = scale * LOG2E
    dk, dv = tl.zeros((BS, DP), tl.float32), tl.zeros((BS, EP), tl.float32)
    # Queries to whom the block is near: all for block 0, every SHARES-th tile of them here, else its own and the next.
    tile, step = tl.where(is_0, program, j), tl.where(is_0, SHARES, 1)
    tiles = (tl.where(is_0, N, tl.minimum(j + 2, N)) - tile + step - 1) // step
    for share_head in range(0, GS):
        h = g * GS + share_head
        q_base, d_base, lane = Q + b * q_b + h * q_h, D_OUT + (b * T * H + h) * E, b * H + h
        for y in range(0, tiles):
            t = (tile + y * step) * BS + tl.arange(0, BS)
            valid = t < T
            block = load_chosen(CHOSEN, bg * T + t, valid, n, NP)
            selects = tl.max((block == j).to(tl.int32), 1) > 0
            q, d_out = load_rows(q_base, q_t, t, valid, D, DP), load_rows(d_base, H * E, t, valid, E, EP)
            lse, delta = row_state(STATE, lane, t, valid, T)
            seen = selects[None, :] & (t[None, :] >= key[:, None])
            dk, dv, _ = key_gradient(q, k, v, d_out, lse, delta, dk, dv, scale2, seen, True, PRECISION)
        part = (local * GS + share_head) * T * n
        for first in range(start, end, TQ):
            place = first + tl.arange(0, TQ)
            valid = place < end
            entry = tl.load(ENTRIES + bg * T * n + place, mask=valid, other=0)
            t = entry // n
            q, d_out = load_rows(q_base, q_t, t, valid, D, DP), load_rows(d_base, H * E, t, valid, E, EP)
            lse, delta = row_state(STATE, lane, t, valid, T)
            dk, dv, ds = key_gradient(q, k, v, d_out, lse, delta, dk, dv, scale2, valid, False, PRECISION)
            dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION)
            store_rows(PART + part * D, D, entry, valid, dq, D, DP)
    if is_0:
        rows = (bg * SHARES + program) * BS + tl.arange(0, BS)
        store_rows(PAIR_0, D + E, rows, rows >= 0, dk * scale, D, DP)
        store_rows(PAIR_0 + D, D + E, rows, rows >= 0, dv, E, EP)
    else:
        store_key_gradients(PAIR, total, b, g, key, T, G, dk * scale, dv, D, DP, E, EP)


@triton.jit(do_not_specialize=_SIZES)
def merge_query_gradient(
    Q, K, V, D_OUT, STATE, CHOSEN, FAR, PART, DQ, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, head, scale,
    n: tl.constexpr, NP: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Write dq of the queries of a block, or add it to DQ: far partials, then near blocks. Grid (blocks, heads)."""
    i = tl.program_id(0)
    local = tl.program_id(1).to(tl.int64)
    b, h = (head + local) // H, (head + local) % H
    g = h // GS
    bg = b * (H // GS) + g
    t = i * BS + tl.arange(0, BS)
    valid = t < T
    block = load_chosen(CHOSEN, bg * T + t, valid, n, NP)
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
    d_out = load_rows(D_OUT + (b * T * H + h) * E, H * E, t, valid, E, EP)
    lse, delta = row_state(STATE, b * H + h, t, valid, T)
    scale2 = scale * LOG2E
    dq = tl.zeros((BS, DP), tl.float32)
    if i > 2:
        slots = tl.load(FAR + bg * T + t, mask=valid, other=0)
        for z in tl.range(0, n, num_stages=STAGES):
            far = ((slots >> z) & 1) == 1
            dq += load_rows(PART, D, (local * T + t) * n + z, far, D, DP).to(tl.float32)
    k_base, v_base = K + b * k_b + g * k_h, V + b * v_b + g * v_h
    for x in range(0, 3):
        j, another = _near(x, i)
        if another:
            key = j * BS + tl.arange(0, BS)
            k, v = load_rows(k_base, k_t, key, key < T, D, DP), load_rows(v_base, v_t, key, key < T, E, EP)
            selects = tl.max((block == j).to(tl.int32), 1) > 0
            seen = selects[:, None] & (t[:, None] >= key[None, :])
            dq = query_gradient(q, k, v, d_out, lse, delta, dq, scale2, seen, True, PRECISION)
    dq *= scale
    d_base = DQ + (b * T * H + h) * D
    if ADD:
        dq += load_rows(d_base, H * D, t, valid, D, DP).to(tl.float32)
    store_rows(d_base, H * D, t, valid, dq, D, DP)
