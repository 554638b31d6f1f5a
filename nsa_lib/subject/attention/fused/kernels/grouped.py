"""The gradients of selected attention where the heads of a group fill the rows of a product.

All heads of a group read the same blocks, so one query's heads are a tile, and nothing partial is written. So goes dq
of queries whose neighbours chose otherwise; the others go together (see `union`), as all do forward. For keys and
values the inverse of the selection gives each block's queries, several of them with all their heads in a tile. They are
taken from the last to the first: late queries choose all blocks alike, so programs that start together read the same
ones, and a cache serves all but the first.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.chunks import chunk, store_share
from nsa_lib.subject.attention.fused.kernels.tile import (
    LOG2E,
    gather_rows,
    key_gradient,
    load_head_tile,
    load_rows,
    query_gradient,
    row_state,
    store_rows,
)

_SIZES = ["T", "N", "H"]


@triton.jit(do_not_specialize=[*_SIZES, "MOST"])
def grouped_query_gradient(
    Q, K, V, D_OUT, STATE, CHOSEN, COUNT, DQ, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, MOST, scale,
    n: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, ADD: tl.constexpr, TQ: tl.constexpr,
    STAGES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Write dq of one query's heads of a group, or add it to DQ, if its tile's list is longer than MOST (see `union`).

    COUNT [B * G, tiles] has those lengths, of tiles of TQ queries. Grid (T, B * G).
    """
    t = tl.program_id(0)
    G = H // GS
    b, g = (tl.program_id(1) // G).to(tl.int64), (tl.program_id(1) % G).to(tl.int64)
    h = tl.arange(0, GP)
    if tl.load(COUNT + (b * G + g) * tl.cdiv(T, TQ) + t // TQ) > MOST:
        valid, token = h < GS, (b * T + t) * H + g * GS
        q = load_rows(Q + b * q_b + g * GS * q_h + t.to(tl.int64) * q_t, q_h, h, valid, D, DP)
        d_out = load_rows(D_OUT + token * E, E, h, valid, E, EP)
        lse, delta = row_state(STATE, b * H + g * GS + h, t, valid, T)
        chosen = CHOSEN + ((b * G + g) * T + t) * n
        dq = tl.zeros((GP, DP), tl.float32)
        for slot in tl.range(0, n, num_stages=STAGES):
            block = tl.load(chosen + slot).to(tl.int32)
            first = tl.maximum(block, 0) * BS
            seen = (first + tl.arange(0, BS) <= t) & (block >= 0)
            k = load_head_tile(K, b, g, k_b, k_h, k_t, first, T, BS, D, DP, False, TMA)
            v = load_head_tile(V, b, g, v_b, v_h, v_t, first, T, BS, E, EP, False, TMA)
            dq = query_gradient(q, k, v, d_out, lse, delta, dq, scale * LOG2E, seen[None, :], True, PRECISION)
        dq *= scale
        if ADD:
            dq += load_rows(DQ + token * D, D, h, valid, D, DP).to(tl.float32)
        store_rows(DQ + token * D, D, h, valid, dq, D, DP)


@triton.jit(do_not_specialize=[*_SIZES, "MOST", "SIZE", "places", "total"])
def grouped_key_gradient(
    Q, K, V, D_OUT, STATE, ENTRIES, START, FIRST, BLOCK, PAIR, SHARES, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    T, N, H, MOST, SIZE, places, total, scale, n: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, GP: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of a chunk, TQ of its queries with all their heads at a time.

    See `store_share` for where they go. Grid (B * G, chunks).
    """
    G = H // GS
    bg = tl.program_id(0).to(tl.int64)
    b, g = bg // G, bg % G
    exists, j, x, chunks, start, end = chunk(START, FIRST, BLOCK, bg, tl.program_id(1), N, MOST, SIZE)
    if exists:
        key = j * BS + tl.arange(0, BS)
        k = load_rows(K + b * k_b + g * k_h, k_t, key, key < T, D, DP)
        v = load_rows(V + b * v_b + g * v_h, v_t, key, key < T, E, EP)
        row = tl.arange(0, TQ * GP)  # query by query, the heads of each together
        head, is_head = tl.minimum(row % GP, GS - 1), row % GP < GS
        queries, d_outs = Q + b * q_b + g * GS * q_h, D_OUT + (b * T * H + g * GS) * E
        entries, state = ENTRIES + bg * T * n, STATE + (b * H + g * GS + head) * 2 * T
        scale2 = scale * LOG2E
        dk, dv = tl.zeros((BS, DP), tl.float32), tl.zeros((BS, EP), tl.float32)
        for first in range(0, end - start, TQ):
            place = end - 1 - first - row // GP
            t = (tl.load(entries + tl.maximum(place, start)) // n).to(tl.int64)
            q, d_out = gather_rows(queries, 1, t * q_t + head * q_h, D, DP), gather_rows(d_outs, E, t * H + head, E, EP)
            lse = tl.where((place >= start) & is_head, tl.load(state + t), float("inf"))
            delta = tl.load(state + T + t)
            seen = t[None, :] >= key[:, None]
            dk, dv, _ = key_gradient(q, k, v, d_out, lse, delta, dk, dv, scale2, seen, True, PRECISION)
        store_share(
            PAIR, SHARES, FIRST, total, bg, places, b, g, bg, j, x, chunks, T, G, N, dk * scale, dv, BS, D, DP, E, EP
        )  # fmt: skip
