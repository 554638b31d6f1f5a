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
    ALL: tl.constexpr,
):  # fmt: skip
    """Mark the pairs: a bit for each query in COLUMN [B * G, N, WORDS], one for each slot in SLOTS [B * G, T]."""
    bg = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * R + tl.arange(0, R)
    block, listed = _pairs(CHOSEN, bg, t, T, n, NP, BS, ALL)
    one = tl.full((R, NP), 1, tl.int32)
    slots = tl.reduce(tl.where(listed, one << tl.arange(0, NP)[None, :], 0), 1, bitwise_or)
    tl.store(SLOTS + bg * T + t, slots, mask=t < T)
    tl.atomic_or(COLUMN + (bg * N + block) * WORDS + (t >> 5)[:, None], one << (t & 31)[:, None], mask=listed)


@triton.jit(do_not_specialize=_SIZES)
def count(COLUMN, BEFORE, COUNT, WORDS, N, CHUNK: tl.constexpr, BS: tl.constexpr):
    """Write how many bits of a block stand before each word, and in all [B * G, N]. Grid (blocks, B * G)."""
    j = tl.program_id(0)
    bg = tl.program_id(1).to(tl.int64)
    row = (bg * N + j) * WORDS
    total = 0
    for first in range(j * BS // 32 // CHUNK * CHUNK, WORDS, CHUNK):
        word = first + tl.arange(0, CHUNK)
        bits = count_bits(tl.load(COLUMN + row + word, mask=word < WORDS, other=0))
        tl.store(BEFORE + row + word, total + tl.cumsum(bits, 0) - bits, mask=word < WORDS)
        total += tl.sum(bits, 0)
    tl.store(COUNT + bg * N + j, total)


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
    word = (bg * N + block) * WORDS + (t >> 5)[:, None]
    earlier = (tl.full((R, NP), 1, tl.int32) << (t & 31)[:, None]) - 1
    place = tl.load(START + bg * (N + 1) + block, mask=listed, other=0) + tl.load(BEFORE + word, mask=listed, other=0)
    place += count_bits(tl.load(COLUMN + word, mask=listed, other=0) & earlier)
    tl.store(ENTRIES + bg * T * n + place, t[:, None] * n + tl.arange(0, NP)[None, :], mask=listed)
