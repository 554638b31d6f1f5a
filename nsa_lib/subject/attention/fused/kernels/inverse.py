"""The inverse of a selection: for each block, the queries that chose it, in ascending order.

A pair (query, block) is near if the block is 0, the query's own or the one before it: nearly every query chose those,
so `listed` works on them as dense tiles and asks for the far pairs alone; `grouped` asks for all. A listed pair is an
entry t * n + slot; they are sorted by block, then by query. No sort, no wait for the host: bits are marked, counted and
scanned, and each pair computes its place.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.tile import bitwise_or, count_bits, load_chosen

_SIZES = ["T", "N", "WORDS"]


@triton.jit
def _pairs(CHOSEN, bg, t, T, n: tl.constexpr, NP: tl.constexpr, BS: tl.constexpr, ALL: tl.constexpr):
    """Load the blocks [queries, NP] that queries chose, and which of the pairs are listed."""
    block = load_chosen(CHOSEN, bg * T + t, t < T, n, NP)
    if ALL:
        return block, block >= 0
    return block, (block > 0) & (block < (t // BS - 1)[:, None])


@triton.jit(do_not_specialize=_SIZES)
def mark(
    CHOSEN, COLUMN, SLOTS, T, WORDS, N, n: tl.constexpr, NP: tl.constexpr, R: tl.constexpr, BS: tl.constexpr,
    BLOCKS: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Mark the listed pairs: a bit for each query in COLUMN [B * G, WORDS, N]; and what a query has, in SLOTS.

    SLOTS [B * G, 2, T] has a bit for each listed slot, then the near blocks: 1 for block 0, 2 for the one before the
    own, 4 for the own. The words of R queries are this program's alone: it clears them itself, and its atomics need no
    order among programs. Grid (tiles of queries, B * G).
    """
    bg = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * R
    t = first + tl.arange(0, R)
    words = COLUMN + (bg * WORDS + first // 32) * N
    j = tl.arange(0, BLOCKS)
    for word in tl.static_range(R // 32):
        tl.store(words + word * N + j, tl.zeros((BLOCKS,), tl.int32), mask=(j < N) & (first // 32 + word < WORDS))
    block, listed = _pairs(CHOSEN, bg, t, T, n, NP, BS, ALL)
    one, own = tl.full((R, NP), 1, tl.int32), (t // BS)[:, None]
    slots = tl.reduce(tl.where(listed, one << tl.arange(0, NP)[None, :], 0), 1, bitwise_or)
    near = tl.where(block == 0, 1, tl.where(block == own, 4, tl.where(block == own - 1, 2, 0)))
    near = tl.reduce(tl.where(block >= 0, near, 0), 1, bitwise_or)
    tl.store(SLOTS + bg * 2 * T + t, slots, mask=t < T)
    tl.store(SLOTS + (bg * 2 + 1) * T + t, near, mask=t < T)
    tl.debug_barrier()  # the words are clear
    word = ((t - first) // 32)[:, None]
    tl.atomic_or(words + word * N + block, one << (t & 31)[:, None], mask=listed, sem="relaxed")


@triton.jit(do_not_specialize=_SIZES)
def count(COLUMN, BEFORE, COUNT, WORDS, N, CHUNK: tl.constexpr, JB: tl.constexpr, BS: tl.constexpr):
    """Write how many bits of a block stand before each word, and in all [B * G, N]. Grid (blocks / JB, B * G)."""
    bg = tl.program_id(1).to(tl.int64)
    j = tl.program_id(0) * JB + tl.arange(0, JB)
    total = tl.zeros((JB,), tl.int32)
    for first in range(tl.program_id(0) * JB * BS // 32 // CHUNK * CHUNK, WORDS, CHUNK):
        word = first + tl.arange(0, CHUNK)
        place = (bg * WORDS + word)[:, None] * N + j[None, :]
        inside = (word < WORDS)[:, None] & (j < N)[None, :]
        bits = count_bits(tl.load(COLUMN + place, mask=inside, other=0))
        tl.store(BEFORE + place, total[None, :] + tl.cumsum(bits, 0) - bits, mask=inside)
        total += tl.sum(bits, 0)
    tl.store(COUNT + bg * N + j, total, mask=j < N)


@triton.jit(do_not_specialize=_SIZES)
def scan(COUNT, START, N, BLOCKS: tl.constexpr):
    """Write where each block's list starts and the last one ends, [B * G, N + 1]. Grid (B * G,)."""
    bg = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCKS)
    counts = tl.load(COUNT + bg * N + j, mask=j < N, other=0)
    tl.store(START + bg * (N + 1) + j, tl.cumsum(counts, 0) - counts, mask=j < N)
    tl.store(START + bg * (N + 1) + N, tl.sum(counts, 0))


@triton.jit(do_not_specialize=_SIZES)
def scatter(
    CHOSEN, COLUMN, BEFORE, START, ENTRIES, T, WORDS, N, n: tl.constexpr, NP: tl.constexpr, R: tl.constexpr,
    BS: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Write each listed pair to its place in ENTRIES [B * G, T * n]. Grid (tiles of queries, B * G)."""
    bg = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * R + tl.arange(0, R)
    block, listed = _pairs(CHOSEN, bg, t, T, n, NP, BS, ALL)
    word = (bg * WORDS + t // 32)[:, None] * N + block
    earlier = (tl.full((R, NP), 1, tl.int32) << (t & 31)[:, None]) - 1
    place = tl.load(START + bg * (N + 1) + block, mask=listed, other=0) + tl.load(BEFORE + word, mask=listed, other=0)
    place += count_bits(tl.load(COLUMN + word, mask=listed, other=0) & earlier)
    tl.store(ENTRIES + bg * T * n + place, t[:, None] * n + tl.arange(0, NP)[None, :], mask=listed)
