"""Chunks of lists: several programs share the queries of a block that many chose, in a fixed order.

A list of entries (see `inverse`) is cut into chunks of SIZE, at least one a block and LEAST of block 0. FIRST
[B * G, N + 1] says where each block's chunks start, BLOCK [B * G, chunks] whose each one is. If block j has several,
chunk x writes its share of a gradient to place 2 (FIRST[j] - j) + x of SHARES: the blocks before j have FIRST[j] - j
chunks beyond their first, so those of them that have several have at most twice as many.
"""

import triton
import triton.language as tl

from nsa_lib.subject.attention.fused.kernels.tile import load_rows, store_key_gradients, store_rows


@triton.jit(do_not_specialize=["N", "MOST", "SIZE"])
def cut(START, FIRST, BLOCK, N, MOST, SIZE, LEAST: tl.constexpr, BLOCKS: tl.constexpr):
    """Write FIRST and BLOCK, whose rows have MOST places. Grid (B * G,)."""
    bg = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCKS)
    start = START + bg * (N + 1) + j
    count = tl.load(start + 1, mask=j < N, other=0) - tl.load(start, mask=j < N, other=0)
    chunks = tl.where(j < N, tl.maximum(tl.cdiv(count, SIZE), tl.where(j == 0, LEAST, 1)), 0)
    first = tl.cumsum(chunks, 0) - chunks
    tl.store(FIRST + bg * (N + 1) + j, first, mask=j < N)
    tl.store(FIRST + bg * (N + 1) + N, tl.sum(chunks, 0))
    for x in range(0, tl.max(chunks, 0)):
        tl.store(BLOCK + bg * MOST + first + x, j, mask=x < chunks)


@triton.jit
def chunk(START, FIRST, BLOCK, bg, c, N, MOST, SIZE):
    """Return whether there is a chunk c, its block, its number there, how many the block has, and its entries' ends."""
    first = FIRST + bg * (N + 1)
    exists = c < tl.load(first + N)
    j = tl.where(exists, tl.load(BLOCK + bg * MOST + c, mask=exists, other=0), 0)
    x, others = c - tl.load(first + j), tl.load(first + j + 1) - tl.load(first + j)
    start, end = tl.load(START + bg * (N + 1) + j) + x * SIZE, tl.load(START + bg * (N + 1) + j + 1)
    return exists, j, x, others, start, tl.minimum(start + SIZE, end)


@triton.jit
def store_share(
    PAIR, SHARES, FIRST, total, local, places, b, g, bg, j, x, chunks, T, G, N, dk, dv, BS: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """Store the gradients of the keys of block j: to PAIR (see `store_key_gradients`), or a share to SHARES.

    SHARES is float32 [B * G of the pass, places, BS, D + E].
    """
    row = tl.arange(0, BS)
    if chunks == 1:
        store_key_gradients(PAIR, total, b, g, j * BS + row, T, G, dk, dv, D, DP, E, EP)
    else:
        place = local * places + 2 * (tl.load(FIRST + bg * (N + 1) + j) - j) + x
        store_rows(SHARES, D + E, place * BS + row, row >= 0, dk, D, DP)
        store_rows(SHARES + D, D + E, place * BS + row, row >= 0, dv, E, EP)


@triton.jit(do_not_specialize=["T", "G", "N", "lane", "places", "total"])
def add_shares(
    PAIR, SHARES, FIRST, T, G, N, lane, places, total, BS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    E: tl.constexpr, EP: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the sum of the shares of each block that has several, from the first to the last, to PAIR.

    Of the groups of a pass, which begin with `lane`. Grid (groups of the pass, blocks, BS / ROWS).
    """
    local, j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    bg, row = lane + local, tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    first = tl.load(FIRST + bg * (N + 1) + j)
    chunks = tl.load(FIRST + bg * (N + 1) + j + 1) - first
    if chunks > 1:
        dk, dv = tl.zeros((ROWS, DP), tl.float32), tl.zeros((ROWS, EP), tl.float32)
        for x in tl.range(0, chunks, num_stages=STAGES):
            rows = (local * places + 2 * (first - j) + x) * BS + row
            dk += load_rows(SHARES, D + E, rows, rows >= 0, D, DP)
            dv += load_rows(SHARES + D, D + E, rows, rows >= 0, E, EP)
        store_key_gradients(PAIR, total, bg // G, bg % G, j * BS + row, T, G, dk, dv, D, DP, E, EP)
