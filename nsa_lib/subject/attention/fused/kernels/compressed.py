"""Compressed attention and the choice of blocks at once, where each head chooses alone and l = d.

Attention makes each exp2(s - m) that a score needs (Eqs. 8-10): no score is written and none is made twice. A tile is
the keys of BLOCKS blocks, ordered so that the R keys of a block lie in one thread: a score is R - 1 additions. The
running maximum m is an integer, so scores of different tiles differ by a shift of their exponent alone. Relative to the
first tile's m they fit 8 bits of exponent and 23 - INDEX_BITS of the mantissa. With the index of the block that is an
int32 key, unique in a row; equal scores go to the lower index.

Block j belongs to set j mod BLOCKS, and each set keeps its seven best. If the seventh of a set is among a row's n - 3
best, an eighth may be too: the tile's queries are then scored again, as `choice` does it. So they are where a row's
maximum has grown beyond what the exponent holds.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.choice import add_scores, no_blocks, rank_keys, store_blocks, take_best
from nsa_lib.subject.attention.fused.kernels.tile import LOG2E, LOWEST, gather_rows, load_rows, store_branch

BLOCKS = tl.constexpr(16)
"""Blocks whose keys make a tile, and sets of blocks."""

GRID = tl.constexpr(192.0)
"""Added to a logit, and taken off with its maximum: it rounds the logit to a multiple of 2^-16 first. The difference to
any integer maximum is then exact, and equal logits give equal p whichever tile they are in."""

MOST_GROWTH = tl.constexpr(187)
"""How far, in powers of two, a maximum may grow after the first tile: a score of 8 then still has its exponent."""

LEVEL = tl.constexpr(62)
"""What the exponent of a score is lowered by, to make room for that growth."""


@triton.jit
def _keys(first, R: tl.constexpr):
    """Return the compressed keys of BLOCKS blocks from `first` on: first the first of each block, then the second."""
    column = tl.arange(0, R * BLOCKS)
    return (first + column % BLOCKS) * R + column // BLOCKS


@triton.jit
def _load_whole(
    X, b, h, x_b, x_h, x_t, first, R: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TMA: tl.constexpr
):  # fmt: skip
    """Load the rows of a tile all of which exist; with TMA X is a descriptor that has a block's keys as an axis."""
    if TMA:
        tile = X.load([tl.cast(b, tl.int32), tl.cast(h, tl.int32), 0, first, 0])
        x = tl.reshape(tile, (R * BLOCKS, DP))
    else:
        x = gather_rows(X + b * x_b + h * x_h, x_t, _keys(first, R).to(tl.int64), D, DP)
    return x


@triton.jit
def _insert(key, b0, b1, b2, b3, b4, b5, b6):
    """Put a key of each set in its place among the set's seven best, which are in order."""
    b0, key = tl.maximum(b0, key), tl.minimum(b0, key)
    b1, key = tl.maximum(b1, key), tl.minimum(b1, key)
    b2, key = tl.maximum(b2, key), tl.minimum(b2, key)
    b3, key = tl.maximum(b3, key), tl.minimum(b3, key)
    b4, key = tl.maximum(b4, key), tl.minimum(b4, key)
    b5, key = tl.maximum(b5, key), tl.minimum(b5, key)
    return b0, b1, b2, b3, b4, b5, tl.maximum(b6, key)


@triton.jit
def _attend_and_rank(
    q, k, v, first, i, seen, m, l, acc, m_first, b0, b1, b2, b3, b4, b5, b6, scale2, top_index, INDEX_BITS,
    MASKED: tl.constexpr, R: tl.constexpr, M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take a tile of keys into the softmax, and its blocks 1 ... i - 2 into the sets."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        s = tl.where(seen, s, float("-inf"))
    m_new = tl.maximum(m, tl.math.ceil(tl.max(s, 1) * scale2))
    p = tl.math.exp2((s * scale2 + GRID) - (m_new + GRID)[:, None])
    shrink = tl.math.exp2(m - m_new)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    scores = tl.sum(tl.reshape(p, (M, R, BLOCKS)), 1)
    l = l * shrink + tl.sum(scores, 1)
    m_first = tl.where(first == 0, m_new, m_first)
    raised = (tl.minimum(m_new - m_first, MOST_GROWTH).to(tl.int32) - LEVEL) << 23
    bits = tl.maximum(scores.to(tl.int32, bitcast=True) + raised[:, None], 0)
    block = first + tl.arange(0, BLOCKS)
    key = ((bits >> INDEX_BITS) << INDEX_BITS) | (top_index - block)[None, :]
    key = tl.where(((block >= 1) & (block <= i - 2))[None, :], key, 0)
    b0, b1, b2, b3, b4, b5, b6 = _insert(key, b0, b1, b2, b3, b4, b5, b6)
    return m_new, l, acc, m_first, b0, b1, b2, b3, b4, b5, b6


@triton.jit(do_not_specialize=["T", "C", "H", "rows", "INDEX_BITS"])
def attend_and_choose(
    Q, K, V, K_TILES, V_TILES, OUTPUTS, LSE, CHOSEN, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, T, C, H, rows,
    INDEX_BITS, scale, BRANCH: tl.constexpr, STRIDE: tl.constexpr, OFFSET: tl.constexpr, R: tl.constexpr,
    SHIFT: tl.constexpr, n: tl.constexpr, NP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr,
    EP: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Write output, log2-sum-exp and chosen blocks of the queries of a block, M of one head. Grid (B * H, blocks).

    OUTPUTS and LSE are as in `band_forward`; CHOSEN [B, H, T, n] is ascending, -1 at the end.
    """
    i = tl.num_programs(1) - 1 - tl.program_id(1)
    b, h = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    t = i * M + tl.arange(0, M)
    valid = t < T
    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
    k_base, v_base = K + b * k_b + h * k_h, V + b * v_b + h * v_h
    scale2, top_index = scale * LOG2E, (1 << INDEX_BITS) - 1
    m, l = tl.full((M,), LOWEST, tl.float32), tl.zeros((M,), tl.float32)
    acc, m_first = tl.zeros((M, EP), tl.float32), m
    b0 = tl.zeros((M, BLOCKS), tl.int32)
    b1, b2, b3, b4, b5, b6 = b0, b0, b0, b0, b0, b0
    whole = i // BLOCKS * BLOCKS  # every query of the tile sees all keys of the blocks before the own one
    for first in tl.range(0, whole, BLOCKS, num_stages=STAGES):
        k = _load_whole(K_TILES, b, h, k_b, k_h, k_t, first, R, D, DP, TMA)
        v = _load_whole(V_TILES, b, h, v_b, v_h, v_t, first, R, E, EP, TMA)
        m, l, acc, m_first, b0, b1, b2, b3, b4, b5, b6 = _attend_and_rank(
            q, k, v, first, i, t, m, l, acc, m_first, b0, b1, b2, b3, b4, b5, b6, scale2, top_index, INDEX_BITS,
            False, R, M, PRECISION,
        )  # fmt: skip
    key = _keys(whole, R)
    k, v = load_rows(k_base, k_t, key, key < C, D, DP), load_rows(v_base, v_t, key, key < C, E, EP)
    seen = (t[:, None] >= (key * STRIDE + OFFSET)[None, :]) & (key < C)[None, :]
    m, l, acc, m_first, b0, b1, b2, b3, b4, b5, b6 = _attend_and_rank(
        q, k, v, whole, i, seen, m, l, acc, m_first, b0, b1, b2, b3, b4, b5, b6, scale2, top_index, INDEX_BITS,
        True, R, M, PRECISION,
    )  # fmt: skip
    store_branch(m, l, acc, OUTPUTS, LSE, b, h, t, T, H, rows, BRANCH, E, EP)
    KEEP: tl.constexpr = n - 3
    slot, own = tl.arange(0, NP), i + t * 0
    best, all_fit = no_blocks(own, i, top_index, slot, KEEP)
    if all_fit == 0:
        most_left, last = tl.max(b6, 1), tl.max(b0, 1)
        for z in tl.static_range(KEEP):
            best = tl.where(slot[None, :] == z, last[:, None], best)
            if z < KEEP - 1:
                taken = b0 == last[:, None]
                b0, b1, b2 = tl.where(taken, b1, b0), tl.where(taken, b2, b1), tl.where(taken, b3, b2)
                b3, b4, b5 = tl.where(taken, b4, b3), tl.where(taken, b5, b4), tl.where(taken, b6, b5)
                b6 = tl.where(taken, 0, b6)
                last = tl.max(b0, 1)
        fails = (most_left >= tl.maximum(last, 1)) | (m - m_first > MOST_GROWTH)
        if tl.max((fails & valid).to(tl.int32), 0) > 0:
            total = tl.where(l > 0, l, 1.0)
            lse2 = tl.where(l > 0, m + tl.math.log2(total), float("inf")) + SHIFT
            best, _ = no_blocks(own, i, top_index, slot, KEEP)
            for first in range(1, i - 1, 32):
                j = first + tl.arange(0, 32)
                scores = tl.zeros((M, 32), tl.float32)
                scores = add_scores(scores, q, lse2, k_base, k_t, j, C, scale2, R, 1, D, DP, PRECISION)
                best = take_best(best, rank_keys(scores, j, own, top_index, INDEX_BITS), 0)
    store_blocks(CHOSEN, (b * H + h) * T + t, best, own, top_index, slot, valid, n)
