"""Sums of rows by their place, as gradients of embeddings and of norms are made, in the arithmetic of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from nsa_lib.subject.attention.arithmetic import Arithmetic

MOST_ADDITIONS = 4096
"""Roundings of a sum that are made in turn."""


def added(rows: Tensor, places: Tensor, count: int, arithmetic: Arithmetic) -> Tensor:
    """Add up rows [P, n] by their place among `count`, [count, n].

    An implementation may keep such a sum in the run's dtype: in that arithmetic it is rounded after every addition, or
    after MOST_ADDITIONS evenly many. Places are taken by how many rows they have, most first: who still has one to add
    comes first in every turn. The turns are short and many: the host takes them.
    """
    total = torch.zeros(count, rows.shape[-1], dtype=rows.dtype, device=rows.device)
    if arithmetic.kept == arithmetic.wide:
        return total.index_add_(0, places, rows)
    used, place = torch.unique(places, return_inverse=True)
    by_size = torch.bincount(place).argsort(descending=True, stable=True)
    place = by_size.argsort()[place]
    order = place.argsort(stable=True)
    sizes = torch.bincount(place)
    turn = torch.arange(len(order), device=rows.device) - (sizes.cumsum(0) - sizes)[place[order]]
    turns = int(sizes[0])
    bundle = turn * min(turns, MOST_ADDITIONS) // turns
    addend, which = torch.unique(bundle * len(used) + place[order], return_inverse=True)
    addends = rows.new_zeros(len(addend), rows.shape[-1]).index_add_(0, which, rows[order]).cpu()
    sums, start = addends.new_zeros(len(used), rows.shape[-1]), 0
    for size in torch.bincount(addend // len(used)).tolist():
        sums[:size] = arithmetic.keep(sums[:size] + addends[start : start + size])
        start += size
    return total.index_copy_(0, used[by_size], sums.to(total.device))
