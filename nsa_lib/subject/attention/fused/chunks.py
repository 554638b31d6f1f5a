"""Launches of kernels/chunks.py: lists of queries cut so that many programs share those of a block that many chose."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nsa_lib.subject.attention.fused.op import op
from nsa_lib.subject.attention.fused.shape import power_of_two, widths

_ROWS = 8
_ADD = {"STAGES": 4, "num_warps": 4}


@dataclass(frozen=True)
class Chunks:
    """The lists of all blocks, cut."""

    first: torch.Tensor
    """Where the chunks of each block start, int32 [B * G, N + 1]."""
    block: torch.Tensor
    """Whose each chunk is, int32 [B * G, most chunks]."""
    size: int
    """Most entries of a chunk."""

    @property
    def places(self) -> int:
        """Return how many shares there can be of the blocks of a group that have several chunks."""
        return 2 * (self.block.shape[1] - self.first.shape[1] + 1)


def cut(start: torch.Tensor, entries: torch.Tensor, size: int, *, least: int = 1) -> Chunks:
    """Return the lists in chunks of up to `size` entries; block 0 has `least` chunks at least."""
    blocks = start.shape[1] - 1
    most = blocks + entries.shape[1] // size + least - 1
    chunks = Chunks(torch.empty_like(start), start.new_empty(len(start), most), size)
    _cut(start, chunks.first, chunks.block, size, least)
    return chunks


def empty_shares(chunks: Chunks, groups: int, k: torch.Tensor, v: torch.Tensor, l_sel: int) -> torch.Tensor:
    """Return new room for the shares of so many groups, float32 [groups, places, l_sel, d_k + d_v]."""
    return k.new_empty(groups, chunks.places, l_sel, k.shape[-1] + v.shape[-1], dtype=torch.float32)


@op("cut_lists(Tensor start, Tensor(a!) first, Tensor(b!) block, int size, int least)")
def _cut(start, first, block, size, least):
    from nsa_lib.subject.attention.fused.kernels.chunks import cut

    lanes, blocks = start.shape[0], start.shape[1] - 1
    cut[(lanes,)](
        start, first, block, blocks, block.shape[1], size, LEAST=least, BLOCKS=power_of_two(blocks), num_warps=4
    )  # fmt: skip


def launch_add_shares(
    shares: torch.Tensor,
    first: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pair: torch.Tensor,
    lane: int,
    groups: int,
) -> None:
    """Write the sum of the shares of each block that has several into a pair (see `empty_pair`).

    Those of `groups` groups, from group `lane` of all batches on. For an operator to call.
    """
    from nsa_lib.subject.attention.fused.kernels.chunks import add_shares

    (batch, all_groups, length, _), blocks, l_sel = k.shape, first.shape[1] - 1, shares.shape[2]
    constants = {name: size for name, size in widths(k, v).items() if name != "PRECISION"}
    add_shares[groups, blocks, l_sel // _ROWS](
        pair, shares, first, length, all_groups, blocks, lane, shares.shape[1], batch * all_groups * length,
        BS=l_sel, ROWS=_ROWS, **constants, **_ADD,
    )  # fmt: skip
