"""Scores of the selection blocks and the best of them, in registers: no buffer of scores is ever written (Eqs. 9-12).

A block's score is ranked by its leading 24 - INDEX_BITS bits, INDEX_BITS being those of the number of blocks and 5 at
least: 14 bits, or 6e-5 of the score, for 1,024 blocks. Equal ones go to the lower index. The ranked bits and the index
(complemented, so that the lower one wins) make one int32 key, unique in a row.
"""

import triton
import triton.language as tl

from nsa_lib.attention.fused.kernels.tile import LOG2E, load_rows

NO_BLOCK = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _add_scores(
    scores, q, lse2, k_base, k_t, j, C, scale2, R: tl.constexpr, LD: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a head's share of the scores of blocks j: p of each compressed key times the tokens that it shares, over d.

    Block j shares tokens with keys R j - LD + 1 to R j + R - 1. One product for each of them, all with the same rows of
    the result, makes the sum over a block an addition in registers.
    """
    for column in tl.static_range(LD + R - 1):
        key = j * R + (column - LD + 1)
        k = load_rows(k_base, k_t, key, key < C, D, DP)
        p = tl.math.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2 - lse2[:, None])
        ends_inside = column + 1 if column + 1 < R else R  # in strides from the start of the block
        scores += p * (ends_inside - (column - LD + 1 if column - LD + 1 > 0 else 0))
    return scores


@triton.jit(do_not_specialize=["T", "C", "H", "INDEX_BITS"])
def choose_blocks(
    Q, K, LSE, CHOSEN, q_b, q_h, q_t, k_b, k_h, k_t, T, C, H, INDEX_BITS, scale,
    R: tl.constexpr, LD: tl.constexpr, SHIFT: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BS: tl.constexpr, n: tl.constexpr, NP: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write the n blocks that a tile of queries of one group reads, ascending, -1 at the end. Grid (B * G, tiles).

    Ranked are the blocks 1 ... own - 2, all of whose keys a query sees, so that no key needs a mask; block 0, the own
    one and the one before are always in. R keys begin in a block, LD strides make a compression block; 2^-SHIFT brings
    every score below 1, so that its bits as an integer are ordered and leave two free.
    """
    i = tl.num_programs(1) - 1 - tl.program_id(1)
    G = H // GS
    b, g = (tl.program_id(0) // G).to(tl.int64), (tl.program_id(0) % G).to(tl.int64)
    t = i * M + tl.arange(0, M)
    valid = t < T
    own = t // BS
    last_own = (tl.minimum(i * M + M, T) - 1) // BS
    KEEP: tl.constexpr = n - 3
    slot = tl.arange(0, NP)
    top_index = (1 << INDEX_BITS) - 1
    scale2 = scale * LOG2E
    k_base = K + b * k_b + g * k_h
    # The best keys so far; an empty slot is negative, those past KEEP are never the least.
    best = tl.where(slot < KEEP, -1 - slot, NO_BLOCK)[None, :] + tl.zeros((M, NP), tl.int32)
    if KEEP > 0:
        least = tl.full((M,), -KEEP, tl.int32)
        all_fit = last_own - 2 <= KEEP  # every candidate of every row: no need to rank
        candidate = (slot < KEEP)[None, :] & (1 + slot[None, :] <= own[:, None] - 2)
        best = tl.where(all_fit & candidate, top_index - 1 - slot[None, :], best)
        if GS == 1:
            q = load_rows(Q + b * q_b + g * q_h, q_t, t, valid, D, DP)
            lse2 = tl.load(LSE + (b * H + g) * T + t, mask=valid, other=float("inf")) * LOG2E + SHIFT
        for first in range(1, tl.where(all_fit, 1, last_own - 1), BN):
            j = first + tl.arange(0, BN)
            scores = tl.zeros((M, BN), tl.float32)
            if GS == 1:
                scores = _add_scores(scores, q, lse2, k_base, k_t, j, C, scale2, R, LD, D, DP, PRECISION)
            else:
                for share_head in range(0, GS):
                    h = g * GS + share_head
                    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
                    lse2 = tl.load(LSE + (b * H + h) * T + t, mask=valid, other=float("inf")) * LOG2E + SHIFT
                    scores = _add_scores(scores, q, lse2, k_base, k_t, j, C, scale2, R, LD, D, DP, PRECISION)
            ranked = scores.to(tl.int32, bitcast=True) >> (INDEX_BITS - 1)
            key = (ranked << INDEX_BITS) | (top_index - j)[None, :]
            key = tl.where(j[None, :] <= own[:, None] - 2, key, 0)
            # Each round takes the best remaining key of every row, as long as one of them still beats its row's least.
            next_best = tl.max(key, 1)
            more = tl.max((next_best > tl.maximum(least, 0)).to(tl.int32), 0)
            while more > 0:
                enters = next_best > tl.maximum(least, 0)
                entering = tl.where(enters, next_best, least)
                best = tl.where(best == least[:, None], entering[:, None], best)
                least = tl.min(best, 1)
                # Less than the one just taken wraps to the top, in order: the largest is the next.
                below = (key - next_best[:, None]).to(tl.uint32, bitcast=True)
                nearest = tl.max(below, 1).to(tl.int32, bitcast=True)
                next_best = tl.where(enters & (nearest < 0), next_best + nearest, 0)
                more = tl.max((next_best > tl.maximum(least, 0)).to(tl.int32), 0)
    block = tl.where((best > 0) & (slot < KEEP)[None, :], top_index - (best & top_index), NO_BLOCK)
    block = tl.where((slot == KEEP)[None, :], 0, block)
    block = tl.where((slot == KEEP + 1)[None, :] & (own >= 2)[:, None], (own - 1)[:, None], block)
    block = tl.where((slot == KEEP + 2)[None, :] & (own >= 1)[:, None], own[:, None], block)
    block = tl.sort(block, 1)
    pointers = CHOSEN + ((b * G + g) * T + t[:, None]) * n + slot[None, :]
    tl.store(pointers, tl.where(block == NO_BLOCK, -1, block), mask=valid[:, None] & (slot < n)[None, :])
