"""Selected attention where there are at most 32 blocks: what a query selects is one 32-bit word.

Tiles of queries walk over all blocks before them, as dense attention does; a bit decides whether a row takes part. At
32 blocks a random choice of 16 leaves few tiles without a row, so nothing is gathered or sorted. A row that does not
take part gets a log-sum-exp (or maximum) of +inf, so that its p is 0 without a mask over the tile.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.tile import (
    LOG2E,
    LOWEST,
    attend,
    attend_selected,
    bitwise_or,
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

_SIZES = ["T", "H"]


@triton.jit
def attend_words(
    q, word, k_base, k_t, v_base, v_t, t, i, T, scale2, BS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr,
):  # fmt: skip
    """Return maximum, sum and weighted values (see `attend`) of tile i of the queries, over the blocks of `word`."""
    m, l = tl.full((TQ,), LOWEST, tl.float32), tl.zeros((TQ,), tl.float32)
    acc = tl.zeros((TQ, EP), tl.float32)
    for j in range(0, i * (TQ // BS)):
        selects = ((word >> j) & 1) == 1
        k, v = load_tile(k_base, k_t, j * BS, BS, D, DP), load_tile(v_base, v_t, j * BS, BS, E, EP)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        m, l, acc = attend_selected(s, v, m, l, acc, scale2, selects, PRECISION)
    for z in tl.static_range(TQ // BS):
        j = i * (TQ // BS) + z
        key = j * BS + tl.arange(0, BS)
        k, v = load_rows(k_base, k_t, key, key < T, D, DP), load_rows(v_base, v_t, key, key < T, E, EP)
        seen = (((word >> j) & 1) == 1)[:, None] & (t[:, None] >= key[None, :])
        m, l, acc = attend(q, k, v, m, l, acc, scale2, seen, True, PRECISION)
    return m, l, acc


@triton.jit(do_not_specialize=_SIZES)
def short_forward(
    Q, K, V, CHOSEN, OUT, LSE, WORDS, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, scale,
    n: tl.constexpr, NP: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr,
):  # fmt: skip
    """Write output, log2-sum-exp and the words [B, G, T] of a tile of queries of one head. Grid (B * H, tiles)."""
    i = tl.num_programs(1) - 1 - tl.program_id(1)
    G = H // GS
    b, h = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    g = h // GS
    t = i * TQ + tl.arange(0, TQ)
    valid = t < T
    block = load_chosen(CHOSEN, (b * G + g) * T + t, valid, n, NP)
    bits = tl.where(block >= 0, tl.full((TQ, NP), 1, tl.int32) << (block & 31), 0)
    word = tl.reduce(bits, 1, bitwise_or)
    if h % GS == 0:
        tl.store(WORDS + (b * G + g) * T + t, word, mask=valid)
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
    k_base, v_base = K + b * k_b + g * k_h, V + b * v_b + g * v_h
    m, l, acc = attend_words(q, word, k_base, k_t, v_base, v_t, t, i, T, scale * LOG2E, BS, D, DP, E, EP, PRECISION, TQ)
    out, lse = finish(m, l, acc)
    store_rows(OUT + (b * T * H + h) * E, H * E, t, valid, out, E, EP)
    tl.store(LSE + (b * H + h) * T + t, lse, mask=valid)


@triton.jit
def short_query_gradient(
    q, d_out, lse, delta, dq, word, k_base, k_t, v_base, v_t, t, i, T, scale2, BS: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr,
):  # fmt: skip
    """Return dq, unscaled, plus what the blocks that tile i of the queries selects contribute."""
    for j in range(0, i * (TQ // BS)):
        lse_j = tl.where(((word >> j) & 1) == 1, lse, float("inf"))
        k, v = load_tile(k_base, k_t, j * BS, BS, D, DP), load_tile(v_base, v_t, j * BS, BS, E, EP)
        dq = query_gradient(q, k, v, d_out, lse_j, delta, dq, scale2, t, False, PRECISION)
    for z in tl.static_range(TQ // BS):
        j = i * (TQ // BS) + z
        key = j * BS + tl.arange(0, BS)
        k, v = load_rows(k_base, k_t, key, key < T, D, DP), load_rows(v_base, v_t, key, key < T, E, EP)
        seen = (((word >> j) & 1) == 1)[:, None] & (t[:, None] >= key[None, :])
        dq = query_gradient(q, k, v, d_out, lse, delta, dq, scale2, seen, True, PRECISION)
    return dq


@triton.jit
def short_keys(
    Q, K, V, D_OUT, STATE, WORDS, PAIR, total, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, b, g, j, T, H, scale,
    BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    PRECISION: tl.constexpr, TQ: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of block j of a group to PAIR (see `store_key_gradients`), from all its heads.

    TQ divides BS or BS divides TQ.
    """
    G = H // GS
    key = j * BS + tl.arange(0, BS)
    k = load_rows(K + b * k_b + g * k_h, k_t, key, key < T, D, DP)
    v = load_rows(V + b * v_b + g * v_h, v_t, key, key < T, E, EP)
    words = WORDS + (b * G + g) * T
    scale2 = scale * LOG2E
    dk, dv = tl.zeros((BS, DP), tl.float32), tl.zeros((BS, EP), tl.float32)
    own: tl.constexpr = (BS + TQ - 1) // TQ  # tiles that hold queries of this very block
    start = j * BS // TQ
    for share_head in range(0, GS):
        h = g * GS + share_head
        q_base, d_base, lane = Q + b * q_b + h * q_h, D_OUT + (b * T * H + h) * E, b * H + h
        for z in tl.static_range(own):
            t = (start + z) * TQ + tl.arange(0, TQ)
            word = tl.load(words + t, mask=t < T, other=0)
            q, d_out = load_rows(q_base, q_t, t, t < T, D, DP), load_rows(d_base, H * E, t, t < T, E, EP)
            lse, delta = row_state(STATE, lane, t, t < T, T)
            seen = (((word >> j) & 1) == 1)[None, :] & (t[None, :] >= key[:, None])
            dk, dv, _ = key_gradient(q, k, v, d_out, lse, delta, dk, dv, scale2, seen, True, PRECISION)
        for i in range(start + own, tl.cdiv(T, TQ)):
            t = i * TQ + tl.arange(0, TQ)
            word = tl.load(words + t, mask=t < T, other=0)
            q, d_out = load_rows(q_base, q_t, t, t < T, D, DP), load_rows(d_base, H * E, t, t < T, E, EP)
            lse, delta = row_state(STATE, lane, t, t < T, T)
            lse = tl.where(((word >> j) & 1) == 1, lse, float("inf"))
            dk, dv, _ = key_gradient(q, k, v, d_out, lse, delta, dk, dv, scale2, t, False, PRECISION)
    store_key_gradients(PAIR, total, b, g, key, T, G, dk * scale, dv, D, DP, E, EP)


@triton.jit(do_not_specialize=[*_SIZES, "total"])
def short_key_gradient(
    Q, K, V, D_OUT, STATE, WORDS, PAIR, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, H, total, scale,
    BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    PRECISION: tl.constexpr, TQ: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of each block. Grid (B * G, blocks)."""
    G = H // GS
    b, g = (tl.program_id(0) // G).to(tl.int64), (tl.program_id(0) % G).to(tl.int64)
    short_keys(
        Q, K, V, D_OUT, STATE, WORDS, PAIR, total, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
        b, g, tl.program_id(1), T, H, scale, BS, GS, D, DP, E, EP, PRECISION, TQ,
    )  # fmt: skip
