"""Launches of kernels/inverse.py: for each block, the queries that chose it."""

from __future__ import annotations

import torch

from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import cdiv, power_of_two

_ROWS = 64
_COUNT = {"CHUNK": 128, "JB": 32, "num_warps": 4}


def invert(chosen: torch.Tensor, l_sel: int, *, near: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the entries of each block in ascending order, where each block's start, and what each query has.

    Args:
        chosen: [B, G, T, n], n up to 32.
        l_sel: tokens in a block.
        near: list the pairs with block 0, the own and the one before as well.

    Returns:
        int32 [B * G, T * n], of which each block's share is filled; [B * G, N + 1]; [B * G, 2, T], a bit for each
        listed slot, and one for each near block (see kernels/inverse.py).
    """
    (batch, groups, length, n), blocks = chosen.shape, cdiv(chosen.shape[2], l_sel)
    lanes, words = batch * groups, cdiv(length, 32)

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(lanes, *shape, dtype=torch.int32, device=chosen.device)

    entries, start, slots = empty(length * n), empty(blocks + 1), empty(2, length)
    column, before, count = empty(words, blocks), empty(words, blocks), empty(blocks)
    _invert(chosen, column, before, count, entries, start, slots, l_sel, near)
    return entries, start, slots


@op(
    "invert(Tensor chosen, Tensor(a!) column, Tensor(b!) before, Tensor(c!) count, Tensor(d!) entries, "
    "Tensor(e!) start, Tensor(f!) slots, int l_sel, bool near)"
)
def _invert(chosen, column, before, count, entries, start, slots, l_sel, near):
    from nsa_lib.subject.attention.fused.kernels import inverse as kernels

    (length, n), (lanes, words, blocks) = chosen.shape[2:], column.shape
    pairs = {"n": n, "NP": power_of_two(n, 4), "R": _ROWS, "BS": l_sel, "ALL": near, "num_warps": 4}
    by_query, most = (cdiv(length, _ROWS), lanes), power_of_two(blocks)
    kernels.mark[by_query](chosen, column, slots, length, words, blocks, BLOCKS=most, **pairs)
    kernels.count[cdiv(blocks, _COUNT["JB"]), lanes](column, before, count, words, blocks, BS=l_sel, **_COUNT)
    kernels.scan[(lanes,)](count, start, blocks, BLOCKS=most, num_warps=4)
    kernels.scatter[by_query](chosen, column, before, start, entries, length, words, blocks, **pairs)
