"""Selected attention block by block: the queries that chose a block are gathered against its keys and values.

Each far pair (see `inverse`) leaves a partial output with its log-sum-exp, merged afterwards with the near blocks,
which are dense tiles. Keys and values are read once; a pair costs a row of q, and a partial written and read. Backward
does the same with partial dq. Work goes in passes over some heads, from `head` on, which bounds the partials.

The last tile of a list is filled up with its last entry, so that no far row needs a mask. Offsets into one head are
32 bits wide, unless LONG says that they would overflow. With TMA what is near is read through descriptors.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.chunks import chunk, store_share
from nsa_lib.subject.attention.fused.kernels.tile import (
    LOG2E,
    LOWEST,
    attend_selected,
    bitwise_or,
    count_bits,
    finish,
    gather_rows,
    key_gradient,
    load_head_tile,
    load_rows,
    load_tile,
    query_gradient,
    row_state,
    store_rows,
)

_SIZES = ["T", "N", "H", "head"]


@triton.jit
def _far_entries(entries, first, end, TQ: tl.constexpr, LONG: tl.constexpr):
    """Load the entries of a tile of a list, the last one again beyond its end, and their places."""
    place = first + tl.arange(0, TQ)
    entry = tl.load(entries + tl.minimum(place, end - 1))
    if LONG:
        entry = entry.to(tl.int64)
    return entry, place


@triton.jit(do_not_specialize=[*_SIZES, "MOST", "SIZE"])
def far_forward(
    Q, K, V, ENTRIES, START, FIRST, BLOCK, PART, PART_LSE, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    T, N, H, head, MOST, SIZE, scale, n: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Write a chunk's partials, [heads, T, n, E] and log2-sum-exps. Grid (chunks, heads)."""
    local = tl.program_id(1).to(tl.int64)
    b, h = (head + local) // H, (head + local) % H
    g = h // GS
    bg = b * (H // GS) + g
    exists, j, _, _, start, end = chunk(START, FIRST, BLOCK, bg, tl.program_id(0), N, MOST, SIZE)
    if exists & (start < end):
        k = load_tile(K + b * k_b + g * k_h, k_t, j * BS, BS, D, DP)  # a far block is whole
        v = load_tile(V + b * v_b + g * v_h, v_t, j * BS, BS, E, EP)
        scale2 = scale * LOG2E
        entries, queries = ENTRIES + bg * T * n, Q + b * q_b + h * q_h
        parts, part_lses = PART + local * T * n * E, PART_LSE + local * T * n
        column = tl.arange(0, EP)
        for first in range(start, end, TQ):
            entry, _place = _far_entries(entries, first, end, TQ, LONG)
            q = gather_rows(queries, q_t, entry // n, D, DP)
            s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            m = tl.max(s, 1) * scale2
            p = tl.math.exp2(s * scale2 - m[:, None])
            l = tl.sum(p, 1)
            out = tl.dot(p.to(v.dtype), v, input_precision=PRECISION) * (1.0 / l)[:, None]
            # The partials are read once, much later; their log-sum-exps twice, and a cache holds them.
            tl.store(
                parts + (entry * E)[:, None] + column[None, :], out.to(PART.dtype.element_ty),
                mask=(column < E)[None, :], eviction_policy="evict_first",
            )  # fmt: skip
            tl.store(part_lses + entry, m + tl.math.log2(l), eviction_policy="evict_last")


@triton.jit
def _near_block(x, i, near):
    """Return near block x = 0, 1, 2 of the queries of block i, and which of them chose it: the own, 0, the one before.

    What is the same block as one before it, nobody chose.
    """
    j = tl.where(x == 0, i, tl.where(x == 1, 0, tl.maximum(i - 1, 0)))
    bit = tl.where(x == 0, tl.where(i == 0, 1, 4), tl.where(x == 1, tl.where(i == 0, 0, 1), 2))
    return j, (near & bit) != 0


@triton.jit
def _used_slots(far):
    """Return the first and the last + 1 of the slots that any row lists."""
    used = tl.reduce(far, 0, bitwise_or)
    below = used | (used >> 1)
    below |= below >> 2
    below |= below >> 4
    below |= below >> 8
    below |= below >> 16
    return count_bits((used & -used) - 1) % 32, count_bits(below)  # of no slot, 32 bits stand before the lowest


@triton.jit(do_not_specialize=_SIZES)
def merge(
    Q, K, V, SLOTS, PART, PART_LSE, OUT, LSE, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, head, scale,
    n: tl.constexpr, NP: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, NEAR_STAGES: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """Write output and log2-sum-exp of the queries of a block: near blocks, then far partials. Grid (blocks, heads).

    All far log-sum-exps of a row give its last maximum before the first partial is read, which is then added at once.
    """
    i = tl.num_programs(0) - 1 - tl.program_id(0)
    local = tl.program_id(1).to(tl.int64)
    b, h = (head + local) // H, (head + local) % H
    g = h // GS
    bg = b * (H // GS) + g
    t = i * BS + tl.arange(0, BS)
    valid = t < T
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
    near = tl.load(SLOTS + (bg * 2 + 1) * T + t, mask=valid, other=0)
    scale2 = scale * LOG2E
    m, l = tl.full((BS,), LOWEST, tl.float32), tl.zeros((BS,), tl.float32)
    acc = tl.zeros((BS, EP), tl.float32)
    for x in tl.range(0, 3, num_stages=NEAR_STAGES):
        j, selects = _near_block(x, i, near)
        k = load_head_tile(K, b, g, k_b, k_h, k_t, j * BS, T, BS, D, DP, False, TMA)
        v = load_head_tile(V, b, g, v_b, v_h, v_t, j * BS, T, BS, E, EP, False, TMA)
        seen = t[:, None] >= (j * BS + tl.arange(0, BS))[None, :]
        s = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=PRECISION), float("-inf"))
        m, l, acc = attend_selected(s, v, m, l, acc, scale2, selects, PRECISION)
    if i > 2:
        slots = tl.load(SLOTS + bg * 2 * T + t, mask=valid, other=0)
        first, slot = (local * T + t) * n, tl.arange(0, NP)
        far = ((slots[:, None] >> slot[None, :]) & 1) == 1
        all_lse = tl.load(
            PART_LSE + first[:, None] + slot[None, :], mask=far & (slot < n)[None, :], other=float("-inf")
        )
        last_m = tl.maximum(m, tl.max(all_lse, 1))
        shrink = tl.math.exp2(m - last_m)
        m, l = last_m, l * shrink + tl.sum(tl.math.exp2(all_lse - last_m[:, None]), 1)
        acc *= shrink[:, None]
        low, high = _used_slots(slots)
        for z in tl.range(low, high, num_stages=STAGES):
            here = ((slots >> z) & 1) == 1
            weight = tl.math.exp2(tl.load(PART_LSE + first + z, mask=here, other=float("-inf")) - m)
            acc += load_rows(PART, E, first + z, here, E, EP).to(tl.float32) * weight[:, None]
    out, lse = finish(m, l, acc)
    store_rows(OUT + (b * T * H + h) * E, H * E, t, valid, out, E, EP)
    tl.store(LSE + (b * H + h) * T + t, lse, mask=valid)


@triton.jit(do_not_specialize=[*_SIZES, "MOST", "SIZE", "places", "total"])
def block_gradient(
    Q, D_OUT, Q_TILES, D_OUT_TILES, K, V, STATE, SLOTS, ENTRIES, START, FIRST, BLOCK, PART, PAIR, SHARES,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, N, H, head, MOST, SIZE, places, total, scale,
    n: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr,
    STAGES: tl.constexpr, NEAR_STAGES: tl.constexpr, LONG: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of a chunk, from all heads of its group, and the partial dq of its far pairs [heads, T, n, D].

    See `store_share` for where they go. Grid (groups of the pass, chunks).
    """
    G = H // GS
    local = tl.program_id(0).to(tl.int64)
    bg = head // GS + local
    b, g = bg // G, bg % G
    exists, j, x, chunks, start, end = chunk(START, FIRST, BLOCK, bg, tl.program_id(1), N, MOST, SIZE)
    if exists:
        key = j * BS + tl.arange(0, BS)
        k = load_head_tile(K, b, g, k_b, k_h, k_t, j * BS, T, BS, D, DP, False, TMA)
        v = load_head_tile(V, b, g, v_b, v_h, v_t, j * BS, T, BS, E, EP, False, TMA)
        scale2 = scale * LOG2E
        dk, dv = tl.zeros((BS, DP), tl.float32), tl.zeros((BS, EP), tl.float32)
        # Queries to whom the block is near: all for block 0, each chunk of which has a share of their tiles; else those
        # of the own block and the next, which the first chunk takes.
        tile, step = tl.where(j == 0, x, j), tl.where(j == 0, chunks, 1)
        last = tl.where(j == 0, N, tl.where(x == 0, tl.minimum(j + 2, N), j))
        tiles = (last - tile + step - 1) // step
        entries, near, d_b = ENTRIES + bg * T * n, SLOTS + (bg * 2 + 1) * T, tl.cast(T, tl.int64) * H * E
        for share_head in range(0, GS):
            h = g * GS + share_head
            lane = b * H + h
            for y in tl.range(0, tiles, num_stages=NEAR_STAGES):
                i = tile + y * step
                t = i * BS + tl.arange(0, BS)
                bit = tl.where(j == 0, 1, tl.where(i == j, 4, 2))
                selects = (tl.load(near + t, mask=t < T, other=0) & bit) != 0
                q = load_head_tile(Q_TILES, b, h, q_b, q_h, q_t, i * BS, T, BS, D, DP, False, TMA)
                d_out = load_head_tile(D_OUT_TILES, b, h, d_b, E, H * E, i * BS, T, BS, E, EP, False, TMA)
                lse, delta = row_state(STATE, lane, t, selects, T)
                seen = t[None, :] >= key[:, None]
                dk, dv, _ = key_gradient(q, k, v, d_out, lse, delta, dk, dv, scale2, seen, True, PRECISION)
            queries, d_outs, state = Q + b * q_b + h * q_h, D_OUT + b * d_b + h * E, STATE + lane * 2 * T
            parts, column = PART + (local * GS + share_head) * T * n * D, tl.arange(0, DP)
            for first in tl.range(start, end, TQ, num_stages=STAGES):
                entry, place = _far_entries(entries, first, end, TQ, LONG)
                t = entry // n
                q, d_out = gather_rows(queries, q_t, t, D, DP), gather_rows(d_outs, H * E, t, E, EP)
                lse = tl.where(place < end, tl.load(state + t), float("inf"))
                delta = tl.load(state + T + t)
                dk, dv, ds = key_gradient(q, k, v, d_out, lse, delta, dk, dv, scale2, place, False, PRECISION)
                dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION).to(PART.dtype.element_ty)
                inside = (place < end)[:, None] & (column < D)[None, :]
                tl.store(parts + (entry * D)[:, None] + column[None, :], dq, mask=inside)
        store_share(
            PAIR, SHARES, FIRST, total, local, places, b, g, bg, j, x, chunks, T, G, N, dk * scale, dv, BS, D, DP, E, EP
        )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def merge_query_gradient(
    Q, K, V, D_OUT, STATE, SLOTS, PART, DQ, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, head, scale,
    n: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr, NEAR_STAGES: tl.constexpr,
    ADD: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Write dq of the queries of a block, or add it to DQ: near blocks, then far partials. Grid (blocks, heads)."""
    i = tl.num_programs(0) - 1 - tl.program_id(0)
    local = tl.program_id(1).to(tl.int64)
    b, h = (head + local) // H, (head + local) % H
    g = h // GS
    bg = b * (H // GS) + g
    t = i * BS + tl.arange(0, BS)
    valid = t < T
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
    d_out = load_rows(D_OUT + (b * T * H + h) * E, H * E, t, valid, E, EP)
    lse, delta = row_state(STATE, b * H + h, t, valid, T)
    near = tl.load(SLOTS + (bg * 2 + 1) * T + t, mask=valid, other=0)
    scale2 = scale * LOG2E
    dq = tl.zeros((BS, DP), tl.float32)
    for x in tl.range(0, 3, num_stages=NEAR_STAGES):
        j, selects = _near_block(x, i, near)
        k = load_head_tile(K, b, g, k_b, k_h, k_t, j * BS, T, BS, D, DP, False, TMA)
        v = load_head_tile(V, b, g, v_b, v_h, v_t, j * BS, T, BS, E, EP, False, TMA)
        seen = t[:, None] >= (j * BS + tl.arange(0, BS))[None, :]
        own_lse = tl.where(selects, lse, float("inf"))
        dq = query_gradient(q, k, v, d_out, own_lse, delta, dq, scale2, seen, True, PRECISION)
    if i > 2:
        slots = tl.load(SLOTS + bg * 2 * T + t, mask=valid, other=0)
        low, high = _used_slots(slots)
        for z in tl.range(low, high, num_stages=STAGES):
            here = ((slots >> z) & 1) == 1
            dq += load_rows(PART, D, (local * T + t) * n + z, here, D, DP).to(tl.float32)
    dq *= scale
    d_base = DQ + (b * T * H + h) * D
    if ADD:
        dq += load_rows(d_base, H * D, t, valid, D, DP).to(tl.float32)
    store_rows(d_base, H * D, t, valid, dq, D, DP)
