"""All branches by one launch, where there are at most 32 blocks: launches take longer than their kernels there.

Forward, a head must be a group: the 32 scores of a row lie in registers, their order needs no normalising, and what is
chosen is a word that the selected branch reads on the spot. Backward, each program makes the keys of one branch.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.band import attend_band, band_keys
from nsa_lib.subject.attention.fused.kernels.choice import rank_keys, shared_strides
from nsa_lib.subject.attention.fused.kernels.short import attend_words, short_keys
from nsa_lib.subject.attention.fused.kernels.tile import (
    LOG2E,
    LOWEST,
    count_bits,
    load_gate,
    load_rows,
    store_branch,
    store_rows,
)

HALF = tl.constexpr(16)
"""Blocks whose keys make a tile: of two, for the 32 blocks that 5 bits tell apart."""


@triton.jit
def _half(
    q, k_base, k_t, v_base, v_t, first, m, l, acc, t, C, scale2, ATTENDS: tl.constexpr, STRIDE: tl.constexpr,
    OFFSET: tl.constexpr, R: tl.constexpr, LD: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr,
    EP: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Take the compressed keys that begin in 16 blocks into a softmax; return the blocks' scores as well.

    Scores are relative to the maximum m, which is rounded up to an integer, so that another one changes their exponent
    alone.
    """
    column = tl.arange(0, R * HALF)
    key = (first + column % HALF) * R + column // HALF  # so that the keys of a block are one thread's
    k = load_rows(k_base, k_t, key, key < C, D, DP)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
    seen = (t[:, None] >= (key * STRIDE + OFFSET)[None, :]) & (key < C)[None, :]
    s = tl.where(seen, s, float("-inf"))
    m_new = tl.maximum(m, tl.math.ceil(tl.max(s, 1)))
    p = tl.math.exp2(s - m_new[:, None])
    if ATTENDS:
        shrink = tl.math.exp2(m - m_new)
        l = l * shrink + tl.sum(p, 1)
        v = load_rows(v_base, v_t, key, key < C, E, EP)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    parts = tl.reshape(p, (M, R, HALF))
    if LD > 1:
        offset = tl.arange(0, R)
        parts *= (tl.minimum(offset + LD, R) - offset)[None, :, None].to(tl.float32)
    scores = tl.sum(parts, 1)
    for before in tl.static_range(1, LD):
        key = (first + tl.arange(0, HALF)) * R - before
        k = load_rows(k_base, k_t, key, (key >= 0) & (key < C), D, DP)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        # Where a row does not see the key, and so does not rank the block, this must not overflow.
        scores += tl.math.exp2(tl.minimum(s - m_new[:, None], 0.0)) * shared_strides(-before, R, LD)
    return m_new, l, acc, scores


@triton.jit
def _choose(
    q, k_base, k_t, v_base, v_t, t, C, scale2, ATTENDS: tl.constexpr, STRIDE: tl.constexpr, OFFSET: tl.constexpr,
    R: tl.constexpr, LD: tl.constexpr, SHIFT: tl.constexpr, BS: tl.constexpr, n: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Return the chosen blocks of queries t as words, and, if it ATTENDS, the softmax over the compressed keys."""
    m, l = tl.full((M,), LOWEST, tl.float32), tl.zeros((M,), tl.float32)
    acc = tl.zeros((M, EP), tl.float32)
    m_1, l, acc, low = _half(
        q, k_base, k_t, v_base, v_t, 0, m, l, acc, t, C, scale2,
        ATTENDS, STRIDE, OFFSET, R, LD, D, DP, E, EP, PRECISION, M,
    )  # fmt: skip
    m, l, acc, high = _half(
        q, k_base, k_t, v_base, v_t, HALF, m_1, l, acc, t, C, scale2,
        ATTENDS, STRIDE, OFFSET, R, LD, D, DP, E, EP, PRECISION, M,
    )  # fmt: skip
    own, one = t // BS, tl.full((M,), 1, tl.int32)
    word = (one << (own & 31)) | (one << (tl.maximum(own - 1, 0) & 31)) | 1  # beyond T there are no 32 blocks
    if n > 3:
        scores = tl.reshape(tl.join(low * tl.math.exp2(m_1 - m)[:, None], high), (M, 2 * HALF))
        column = tl.arange(0, 2 * HALF)
        j = column // 2 + column % 2 * HALF
        key = rank_keys(scores * (1.0 / (1 << SHIFT)), j, own, 31, 5)
        least = tl.max(key, 1)  # of those that are in
        for _ in range(0, n - 4):
            # Less than the last one in wraps to the top, in order: the largest is the next.
            below = (key - least[:, None]).to(tl.uint32, bitcast=True)
            nearest = tl.max(below, 1).to(tl.int32, bitcast=True)
            least = tl.where(nearest < 0, least + nearest, least)
        chosen = tl.where(key >= tl.maximum(least, 1)[:, None], tl.full((M, 2 * HALF), 1, tl.int32) << j[None, :], 0)
        word |= tl.sum(chosen, 1)  # each bit once
    return word, m, l, acc


@triton.jit(do_not_specialize=["T", "C", "H"])
def whole_choice(
    Q, K, CHOSEN, q_b, q_h, q_t, k_b, k_h, k_t, T, C, H, scale, STRIDE: tl.constexpr, OFFSET: tl.constexpr,
    R: tl.constexpr, LD: tl.constexpr, SHIFT: tl.constexpr, BS: tl.constexpr, n: tl.constexpr, NP: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Write the blocks that `whole_forward` chooses for a tile of queries, ascending, -1 at the end.

    Grid (B * H, tiles).
    """
    b, h = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    t = tl.program_id(1) * M + tl.arange(0, M)
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, t < T, D, DP)
    k_base = K + b * k_b + h * k_h
    word, _, _, _ = _choose(
        q, k_base, k_t, k_base, k_t, t, C, scale * LOG2E,
        False, STRIDE, OFFSET, R, LD, SHIFT, BS, n, D, DP, E, EP, PRECISION, M,
    )  # fmt: skip
    row = CHOSEN + ((b * H + h) * T + t)[:, None] * n
    slot, block = tl.arange(0, NP)[None, :], tl.arange(0, 2 * HALF)[None, :]
    empty = (slot >= count_bits(word)[:, None]) & (slot < n)
    tl.store(row + slot, tl.full((M, NP), -1, tl.int32), mask=(t < T)[:, None] & empty)
    place = count_bits(word[:, None] & ((tl.full((M, 2 * HALF), 1, tl.int32) << block) - 1))
    tl.store(row + place, block + place * 0, mask=(t < T)[:, None] & (((word[:, None] >> block) & 1) == 1))


@triton.jit(do_not_specialize=["T", "C", "H", "w", "rows"])
def whole_forward(
    Q, K_CMP, V_CMP, K_SLC, V_SLC, K_WIN, V_WIN, GATES, OUTPUTS, LSE, WORDS, MIXED,
    q_b, q_h, q_t, kc_b, kc_h, kc_t, vc_b, vc_h, vc_t, ks_b, ks_h, ks_t, vs_b, vs_h, vs_t, kw_b, kw_h, kw_t,
    vw_b, vw_h, vw_t, T, C, H, w, rows, scale, CMP: tl.constexpr, SLC: tl.constexpr, WIN: tl.constexpr,
    STRIDE: tl.constexpr, OFFSET: tl.constexpr, R: tl.constexpr, LD: tl.constexpr, SHIFT: tl.constexpr,
    BS: tl.constexpr, n: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    PRECISION: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write output and log2-sum-exp of every branch, the words, and the sum of gate times output.

    CMP, SLC and WIN are the places of the branches in OUTPUTS [branches, B, T, H, E]. Grid (B * H, tiles).
    """
    i = tl.num_programs(1) - 1 - tl.program_id(1)  # the tiles that see the most keys start first
    b, h = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    t = i * M + tl.arange(0, M)
    valid, row, scale2 = t < T, b * T * H + h, scale * LOG2E
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
    word, m, l, acc = _choose(
        q, K_CMP + b * kc_b + h * kc_h, kc_t, V_CMP + b * vc_b + h * vc_h, vc_t, t, C, scale2,
        True, STRIDE, OFFSET, R, LD, SHIFT, BS, n, D, DP, E, EP, PRECISION, M,
    )  # fmt: skip
    tl.store(WORDS + (b * H + h) * T + t, word, mask=valid)
    out = store_branch(m, l, acc, OUTPUTS, LSE, b, h, t, T, H, rows, CMP, E, EP)
    mixed = out * load_gate(GATES, row + t * H, valid, CMP, 3)
    m, l, acc = attend_words(
        q, word, K_SLC + b * ks_b + h * ks_h, ks_t, V_SLC + b * vs_b + h * vs_h, vs_t, t, i, T, scale2,
        BS, D, DP, E, EP, PRECISION, M,
    )  # fmt: skip
    out = store_branch(m, l, acc, OUTPUTS, LSE, b, h, t, T, H, rows, SLC, E, EP)
    mixed += out * load_gate(GATES, row + t * H, valid, SLC, 3)
    m, l, acc = attend_band(
        q, K_WIN, V_WIN, b, h, kw_b, kw_h, kw_t, vw_b, vw_h, vw_t, t, i * M,
        tl.minimum(i * M + M, T) - 1, T, w, scale2, 1, 0, True, D, DP, E, EP, PRECISION, M, BN, False,
    )  # fmt: skip
    out = store_branch(m, l, acc, OUTPUTS, LSE, b, h, t, T, H, rows, WIN, E, EP)
    mixed += out * load_gate(GATES, row + t * H, valid, WIN, 3)
    store_rows(MIXED + row * E, H * E, t, valid, mixed, E, EP)


@triton.jit(do_not_specialize=["T", "C", "H", "w", "rows"])
def whole_key_gradient(
    Q, D_OUT, STATE, K_CMP, V_CMP, K_SLC, V_SLC, K_WIN, V_WIN, WORDS, D_CMP, D_SLC, D_WIN,
    q_b, q_h, q_t, kc_b, kc_h, kc_t, vc_b, vc_h, vc_t, ks_b, ks_h, ks_t, vs_b, vs_h, vs_t, kw_b, kw_h, kw_t,
    vw_b, vw_h, vw_t, T, C, H, w, rows, scale, CMP: tl.constexpr, SLC: tl.constexpr, WIN: tl.constexpr,
    STRIDE: tl.constexpr, OFFSET: tl.constexpr, BS: tl.constexpr, GS: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, PRECISION: tl.constexpr, TQ: tl.constexpr, M: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """Write dk and dv of every branch. Grid (B * G, tiles of compressed keys + blocks + tiles of keys)."""
    G = H // GS
    b, g = (tl.program_id(0) // G).to(tl.int64), (tl.program_id(0) % G).to(tl.int64)
    state, total = 2 * tl.cast(rows, tl.int64), tl.num_programs(0) * T
    compressed, blocks = tl.cdiv(C, BN), tl.cdiv(T, BS)  # the tiles that the most queries see start first
    tile = tl.program_id(1)
    if tile < compressed:
        band_keys(
            Q, K_CMP, V_CMP, D_OUT, STATE + CMP * state, D_CMP, total // T * C, q_b, q_h, q_t,
            kc_b, kc_h, kc_t, vc_b, vc_h, vc_t, b, g, tile, 0, 1, T, C, H, 0, scale,
            STRIDE, OFFSET, False, GS, D, DP, E, EP, PRECISION, M, BN, False,
        )  # fmt: skip
    elif tile < compressed + blocks:
        short_keys(
            Q, K_SLC, V_SLC, D_OUT, STATE + SLC * state, WORDS, D_SLC, total, q_b, q_h, q_t,
            ks_b, ks_h, ks_t, vs_b, vs_h, vs_t, b, g, tile - compressed, T, H, scale,
            BS, GS, D, DP, E, EP, PRECISION, TQ,
        )  # fmt: skip
    else:
        band_keys(
            Q, K_WIN, V_WIN, D_OUT, STATE + WIN * state, D_WIN, total, q_b, q_h, q_t,
            kw_b, kw_h, kw_t, vw_b, vw_h, vw_t, b, g, tile - compressed - blocks, 0, 1, T, T, H, w, scale,
            1, 0, True, GS, D, DP, E, EP, PRECISION, M, BN, False,
        )  # fmt: skip
