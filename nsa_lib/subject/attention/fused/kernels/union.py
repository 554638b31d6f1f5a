"""Selected attention over the union of the blocks of a few neighbouring queries, where a group has many heads.

A tile is TQ queries with all heads of a group, which fill the rows of a product. Its list holds each block that one of
its queries chose, once, and says which of them did: every row walks the whole list, and for a block that its query did
not choose its maximum is +inf, so that its p is 0 without a mask over the tile. Neighbours choose alike in a trained
model, and then a block is read once for all of them; where they do not, the list is as long as all their choices.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.tile import (
    LOG2E,
    LOWEST,
    attend_selected,
    finish,
    gather_rows,
    load_chosen,
    load_head_tile,
    store_rows,
)

_SIZES = ["T", "H"]


@triton.jit(do_not_specialize=["T"])
def list_union(CHOSEN, LIST, COUNT, T, n: tl.constexpr, NP: tl.constexpr, TQ: tl.constexpr):
    """List the blocks of tiles of TQ queries. Grid (tiles, B * G).

    LIST [B * G, tiles, TQ * NP] has block * 2^TQ + a bit for each query, COUNT [B * G, tiles] the length.
    """
    i, bg = tl.program_id(0), tl.program_id(1).to(tl.int64)
    P: tl.constexpr = TQ * NP
    t = i * TQ + tl.arange(0, TQ)
    place = tl.arange(0, P)
    block = tl.reshape(load_chosen(CHOSEN, bg * T + t, t < T, n, NP), (P,))
    same = block[:, None] == block[None, :]
    queries = tl.full((P,), 1, tl.int32) << (place // NP)
    who = tl.sum(tl.where(same, queries[None, :], 0), 1)  # a query lists a block once: the sum is a union of bits
    leads = (block >= 0) & (tl.sum((same & (place[None, :] < place[:, None])).to(tl.int32), 1) == 0)
    at = tl.cumsum(leads.to(tl.int32), 0) - 1
    tile = bg * tl.num_programs(0) + i
    tl.store(LIST + tile * P + at, (block << TQ) + who, mask=leads)
    tl.store(COUNT + tile, tl.sum(leads.to(tl.int32), 0))


@triton.jit
def _rows(i, b, g, T, H, GS: tl.constexpr, GP: tl.constexpr, TQ: tl.constexpr):
    """Return the query and the head of each row of tile i, its token's row in [B, T, H], and whether there is one."""
    row = tl.arange(0, TQ * GP)
    t, head = i * TQ + row // GP, g * GS + tl.minimum(row % GP, GS - 1)
    return t, head, (b * T + t) * H + head, (t < T) & (row % GP < GS)


@triton.jit
def _selects(entry, GP: tl.constexpr, TQ: tl.constexpr):
    """Return which rows chose the block of an entry."""
    return ((entry >> (tl.arange(0, TQ * GP) // GP)) & 1) == 1


@triton.jit(do_not_specialize=_SIZES)
def union_forward(
    Q, K, V, LIST, COUNT, OUT, LSE, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, scale, NP: tl.constexpr,
    BS: tl.constexpr, GS: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr,
    EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Write output and log2-sum-exp of a tile's rows. Grid (tiles, B * G)."""
    i = tl.num_programs(0) - 1 - tl.program_id(0)
    G = H // GS
    b, g = (tl.program_id(1) // G).to(tl.int64), (tl.program_id(1) % G).to(tl.int64)
    t, head, row, valid = _rows(i, b, g, T, H, GS, GP, TQ)
    q = gather_rows(Q + b * q_b, 1, tl.minimum(t, T - 1).to(tl.int64) * q_t + head * q_h, D, DP)
    tile, own = (b * G + g) * tl.num_programs(0) + i, i * TQ // BS
    scale2 = scale * LOG2E
    m, l = tl.full((TQ * GP,), LOWEST, tl.float32), tl.zeros((TQ * GP,), tl.float32)
    acc = tl.zeros((TQ * GP, EP), tl.float32)
    for e in tl.range(0, tl.load(COUNT + tile), num_stages=STAGES):
        entry = tl.load(LIST + tile * TQ * NP + e)
        first = (entry >> TQ) * BS
        k = load_head_tile(K, b, g, k_b, k_h, k_t, first, T, BS, D, DP, False, TMA)
        v = load_head_tile(V, b, g, v_b, v_h, v_t, first, T, BS, E, EP, False, TMA)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if first >= own * BS:
            s = tl.where(t[:, None] >= (first + tl.arange(0, BS))[None, :], s, float("-inf"))
        m, l, acc = attend_selected(s, v, m, l, acc, scale2, _selects(entry, GP, TQ), PRECISION)
    out, lse = finish(m, l, acc)
    store_rows(OUT, E, row, valid, out, E, EP)
    tl.store(LSE + (b * H + head) * T + t, lse, mask=valid)


@triton.jit(do_not_specialize=[*_SIZES, "MOST"])
def union_query_gradient(
    Q, K, V, D_OUT, STATE, LIST, COUNT, DQ, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, MOST, scale,
    NP: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr, ADD: tl.constexpr,
    STAGES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Write dq of a tile's rows, or add it to DQ, if its list has up to MOST blocks. Grid (tiles, B * G)."""
    i = tl.num_programs(0) - 1 - tl.program_id(0)
    G = H // GS
    b, g = (tl.program_id(1) // G).to(tl.int64), (tl.program_id(1) % G).to(tl.int64)
    tile, own = (b * G + g) * tl.num_programs(0) + i, i * TQ // BS
    count = tl.load(COUNT + tile)
    if count <= MOST:
        t, head, row, valid = _rows(i, b, g, T, H, GS, GP, TQ)
        inside = tl.minimum(t, T - 1)
        q = gather_rows(Q + b * q_b, 1, inside.to(tl.int64) * q_t + head * q_h, D, DP)
        d_out = gather_rows(D_OUT, E, (b * T + inside) * H + head, E, EP)
        state = STATE + (b * H + head) * 2 * T + inside
        lse, delta = tl.load(state), tl.load(state + T)
        scale2 = scale * LOG2E
        dq = tl.zeros((TQ * GP, DP), tl.float32)
        for e in tl.range(0, count, num_stages=STAGES):
            entry = tl.load(LIST + tile * TQ * NP + e)
            first = (entry >> TQ) * BS
            k = load_head_tile(K, b, g, k_b, k_h, k_t, first, T, BS, D, DP, False, TMA)
            v = load_head_tile(V, b, g, v_b, v_h, v_t, first, T, BS, E, EP, False, TMA)
            own_lse = tl.where(_selects(entry, GP, TQ), lse, float("inf"))
            p = tl.math.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2 - own_lse[:, None])
            if first >= own * BS:
                p = tl.where(t[:, None] >= (first + tl.arange(0, BS))[None, :], p, 0.0)
            ds = p * (tl.dot(d_out, tl.trans(v), input_precision=PRECISION) - delta[:, None])
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        dq *= scale
        if ADD:
            dq += gather_rows(DQ, D, (b * T + inside) * H + head, D, DP).to(tl.float32)
        store_rows(DQ, D, row, valid, dq, D, DP)
