"""Scores of the selection blocks and the best of them, in registers: no buffer of scores is ever written (Eqs. 9-12).

A block's score is ranked by its leading 24 - INDEX_BITS bits, INDEX_BITS being those of the number of blocks and 5 at
least: 14 bits, or 6e-5 of the score, for 1,024 blocks. Equal ones go to the lower index. The ranked bits and the index
(complemented, so that the lower one wins) make one int32 key, unique in a row.

R compressed keys begin in a selection block, and a compression block is LD strides long, so block j shares tokens with
keys R j - LD + 1 to R j + R - 1. 2^-SHIFT brings every score below 1: its bits as an integer are ordered and leave two
free. Ranked are the blocks 1 ... own - 2, all of whose keys a query sees; block 0, the own one and the one before are
always in.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.tile import LOG2E, load_rows

NO_BLOCK = tl.constexpr(0x7FFFFFFF)


@triton.jit
def shared_strides(offset: tl.constexpr, R: tl.constexpr, LD: tl.constexpr):
    """Return how many strides of tokens block j shares with compressed key R j + offset."""
    return (offset + LD if offset + LD < R else R) - (offset if offset > 0 else 0)


@triton.jit
def no_blocks(own, last_own, top_index, slot, KEEP: tl.constexpr):
    """Return keys that stand for no block, [rows, slots], or where all candidates fit for every one, and whether so.

    An empty slot is negative; those past KEEP are never the least.
    """
    best = tl.where(slot < KEEP, -1 - slot, NO_BLOCK)[None, :] + (own * 0)[:, None]
    all_fit = last_own - 2 <= KEEP
    candidate = (slot < KEEP)[None, :] & (1 + slot[None, :] <= own[:, None] - 2)
    return tl.where(all_fit & candidate, top_index - 1 - slot[None, :], best), all_fit


@triton.jit
def rank_keys(scores, j, own, top_index, INDEX_BITS):
    """Return the keys of blocks j, 0 for one that a row does not rank."""
    ranked = scores.to(tl.int32, bitcast=True) >> (INDEX_BITS - 1)
    key = (ranked << INDEX_BITS) | (top_index - j)[None, :]
    return tl.where((j >= 1)[None, :] & (j[None, :] <= own[:, None] - 2), key, 0)


@triton.jit
def _take_next(best, least, key, next_best):
    """Put the next best key of every row, where it beats the least, in that one's place; return the one after it."""
    enters = next_best > tl.maximum(least, 0)
    entering = tl.where(enters, next_best, least)
    best = tl.where(best == least[:, None], entering[:, None], best)
    # Less than the one just taken wraps to the top, in order: the largest is the next.
    below = (key - next_best[:, None]).to(tl.uint32, bitcast=True)
    nearest = tl.max(below, 1).to(tl.int32, bitcast=True)
    return best, tl.min(best, 1), tl.where(enters & (nearest < 0), next_best + nearest, 0)


@triton.jit
def take_best(best, key, ROUNDS: tl.constexpr):
    """Return the best keys of a row, new ones in place of what they beat.

    A round takes one key of every row. Some row nearly always needs a few: only after so many is it asked whether one
    does.
    """
    next_best, least = tl.max(key, 1), tl.min(best, 1)
    for _ in tl.static_range(ROUNDS):
        best, least, next_best = _take_next(best, least, key, next_best)
    while tl.max((next_best > tl.maximum(least, 0)).to(tl.int32), 0) > 0:
        best, least, next_best = _take_next(best, least, key, next_best)
    return best


@triton.jit
def store_blocks(CHOSEN, row, best, own, top_index, slot, valid, n: tl.constexpr):
    """Write the blocks of the best keys with those that are always in, ascending, -1 at the end."""
    KEEP: tl.constexpr = n - 3
    block = tl.where((best > 0) & (slot < KEEP)[None, :], top_index - (best & top_index), NO_BLOCK)
    block = tl.where((slot == KEEP)[None, :], 0, block)
    block = tl.where((slot == KEEP + 1)[None, :] & (own >= 2)[:, None], (own - 1)[:, None], block)
    block = tl.where((slot == KEEP + 2)[None, :] & (own >= 1)[:, None], own[:, None], block)
    block = tl.sort(block, 1)
    pointers = CHOSEN + row[:, None] * n + slot[None, :]
    tl.store(pointers, tl.where(block == NO_BLOCK, -1, block), mask=valid[:, None] & (slot < n)[None, :])


@triton.jit
def add_scores(
    scores, q, lse2, k_base, k_t, j, C, scale2, R: tl.constexpr, LD: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a head's share of the scores of blocks j: p of each compressed key times the strides that it shares.

    One product for each key of a block, all with the same rows of the result, makes the sum over a block an addition
    in registers.
    """
    for column in tl.static_range(LD + R - 1):
        key = j * R + (column - LD + 1)
        k = load_rows(k_base, k_t, key, key < C, D, DP)
        # It may be inf where a row does not see the key, and so does not rank the block.
        p = tl.math.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2 - lse2[:, None])
        scores += p * shared_strides(column - LD + 1, R, LD)
    return scores


@triton.jit(do_not_specialize=["T", "C", "H", "INDEX_BITS"])
def choose_blocks(
    Q, K, LSE, CHOSEN, q_b, q_h, q_t, k_b, k_h, k_t, T, C, H, INDEX_BITS, scale,
    R: tl.constexpr, LD: tl.constexpr, SHIFT: tl.constexpr, GS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BS: tl.constexpr, n: tl.constexpr, NP: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
    ROUNDS: tl.constexpr,
):  # fmt: skip
    """Write the n blocks that a tile of queries of one group reads, by the p of all its heads. Grid (B * G, tiles)."""
    i = tl.num_programs(1) - 1 - tl.program_id(1)
    G = H // GS
    b, g = (tl.program_id(0) // G).to(tl.int64), (tl.program_id(0) % G).to(tl.int64)
    t = i * M + tl.arange(0, M)
    valid = t < T
    own, last_own = t // BS, (tl.minimum(i * M + M, T) - 1) // BS
    KEEP: tl.constexpr = n - 3
    slot = tl.arange(0, NP)
    top_index = (1 << INDEX_BITS) - 1
    k_base = K + b * k_b + g * k_h
    best, all_fit = no_blocks(own, last_own, top_index, slot, KEEP)
    if KEEP > 0:
        if GS == 1:  # read once
            q = load_rows(Q + b * q_b + g * q_h, q_t, t, valid, D, DP)
            lse2 = tl.load(LSE + (b * H + g) * T + t, mask=valid, other=float("inf")) + SHIFT
        for first in range(1, tl.where(all_fit, 1, last_own - 1), BN):
            j = first + tl.arange(0, BN)
            scores = tl.zeros((M, BN), tl.float32)
            if GS == 1:
                scores = add_scores(scores, q, lse2, k_base, k_t, j, C, scale * LOG2E, R, LD, D, DP, PRECISION)
            else:
                for share_head in range(0, GS):
                    h = g * GS + share_head
                    q = load_rows(Q + b * q_b + h * q_h, q_t, t, valid, D, DP)
                    lse2 = tl.load(LSE + (b * H + h) * T + t, mask=valid, other=float("inf")) + SHIFT
                    scores = add_scores(scores, q, lse2, k_base, k_t, j, C, scale * LOG2E, R, LD, D, DP, PRECISION)
            best = take_best(best, rank_keys(scores, j, own, top_index, INDEX_BITS), ROUNDS)
    store_blocks(CHOSEN, (b * G + g) * T + t, best, own, top_index, slot, valid, n)
