"""Selected attention block by block: the queries that chose a block are packed into tiles against its keys and values.

The (query, block) pairs of a lane, one batch entry and group, are sorted by block; each block's queries fill tiles of
TILE_ROWS rows, the last one padded. The number of tiles depends on shapes only, so nothing waits for the device. Each
tile gives a partial softmax with its log-sum-exp; a query's partials are merged by those (as flash attention does).
Backward packs again instead of keeping the tiles.

Letters: L lanes, T queries, R heads a group, D head width, N selection blocks, n blocks a query, P = T * n pairs,
J tiles, M queries in a tile, S = J * M slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.profiler import record_function

from nsa_lib.subject.attention.protocol import ROUTE_PREFIX
from nsa_lib.subject.attention.route import named

TILE_ROWS = 64
"""Rows of a tile's product, over the heads of a group: enough to fill a matrix unit."""

CHUNK_BYTES = 40 * 2**20
"""Bytes of the queries and partial outputs that are packed at a time; lanes go in chunks of that."""


def packed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_indices: torch.Tensor, *, l_sel: int, scale: float
) -> torch.Tensor:
    """Attend to the selected blocks by packing queries per block (see `backends` for arguments and shapes)."""
    with record_function(f"{ROUTE_PREFIX}packed"):
        (batch, heads, length, _), groups = q.shape, k.shape[1]
        lanes = named(q, f"{ROUTE_PREFIX}packed").reshape(batch * groups, heads // groups, length, -1).transpose(1, 2)
        out = _Packed.apply(lanes, k.flatten(0, 1), v.flatten(0, 1), block_indices.flatten(0, 1), l_sel, scale)
        return out.transpose(1, 2).reshape(batch, heads, length, -1)


@dataclass(frozen=True)
class Tiles:
    """Where each (query, block) pair of the lanes sits."""

    query: torch.Tensor
    """Query of each slot, -1 for an empty one, [L, J, M]."""
    block: torch.Tensor
    """Block of each tile, [L, J]."""
    slot: torch.Tensor
    """Slot of each pair, [L, T, n]; 0 for padding."""
    padding: torch.Tensor
    """Whether a pair is padding, [L, T, n]."""

    @classmethod
    def pack(cls, indices: torch.Tensor, selectable: int, queries_per_tile: int) -> Tiles:
        """Sort the pairs of [L, T, n] block indices by block into tiles."""
        lanes, length, n = indices.shape
        tiles = length * n // queries_per_tile + selectable
        padding = indices < 0
        blocks = indices.masked_fill(padding, selectable).flatten(1)
        sorted_blocks, order = blocks.sort(dim=1, stable=True)
        count = torch.zeros(lanes, selectable + 1, dtype=torch.int64, device=indices.device)
        count.scatter_add_(1, blocks, torch.ones_like(blocks))
        tiles_of_block = -(-count // queries_per_tile)
        end_tile = tiles_of_block.cumsum(dim=1)
        # Rank of a pair among those of its block, then its slot; the pairs of no block share one behind all others.
        rank = torch.arange(length * n, device=indices.device) - (count.cumsum(dim=1) - count).gather(1, sorted_blocks)
        slot = (end_tile - tiles_of_block).gather(1, sorted_blocks) * queries_per_tile + rank
        slot = slot.masked_fill(sorted_blocks == selectable, tiles * queries_per_tile)
        query = torch.full((lanes, tiles * queries_per_tile + 1), -1, dtype=torch.int64, device=indices.device)
        query.scatter_(1, slot, order // n)
        block = torch.searchsorted(
            end_tile[:, :selectable].contiguous(),
            torch.arange(tiles, device=indices.device).expand(lanes, -1).contiguous(),
            right=True,
        )
        return cls(
            query=query[:, :-1].unflatten(1, (tiles, queries_per_tile)),
            block=block.clamp(max=selectable - 1),
            slot=torch.zeros_like(slot).scatter_(1, order, slot).view(indices.shape).masked_fill(padding, 0),
            padding=padding,
        )

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Take each slot's query from [L, T, R, D], rows of a tile together: [L, J, M * R, D]."""
        lanes, tiles, _ = self.query.shape
        index = self.query.clamp(min=0).flatten(1)
        lane = torch.arange(lanes, device=x.device)[:, None]
        return x[lane, index].view(lanes, tiles, -1, x.shape[-1])

    def blocks(self, x: torch.Tensor) -> torch.Tensor:
        """Take each tile's block from [L, N, l_sel, D]: [L, J, l_sel, D]."""
        return x[torch.arange(len(x), device=x.device)[:, None], self.block]

    def pairs(self, x: torch.Tensor, share: int) -> torch.Tensor:
        """Take each pair's rows from [L, J, M * R, D]: [L, T, n, R, D]."""
        slots = x.view(len(x), -1, share, x.shape[-1])
        return slots[torch.arange(len(x), device=x.device)[:, None, None], self.slot]

    def logits(self, q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
        """Return q kᵀ scale of every tile, [L, J, M * R, l_sel]; -inf in a query's future and in empty slots."""
        l_sel, share = k.shape[2], q.shape[2] // self.query.shape[2]
        tokens = self.block[..., None] * l_sel + torch.arange(l_sel, device=q.device)
        hidden = tokens[:, :, None] > self.query[..., None]
        return (q @ k.mT * scale).masked_fill_(hidden.repeat_interleave(share, dim=2), -torch.inf)


class _Packed(torch.autograd.Function):
    """softmax(q kᵀ scale) v over the selected blocks, and its gradient, lanes in chunks; q is [L, T, R, D]."""

    @staticmethod
    def forward(ctx, q, k, v, block_indices, l_sel, scale):
        outputs, sums = [], []
        for lanes in _chunks(q, v, block_indices, l_sel):
            out, lse = _forward(*_wide(q[lanes], k[lanes], v[lanes]), block_indices[lanes], l_sel, scale)
            outputs.append(out.to(q.dtype))
            sums.append(lse)
        out, lse = torch.cat(outputs), torch.cat(sums)
        ctx.save_for_backward(q, k, v, block_indices, out, lse)
        ctx.l_sel, ctx.scale = l_sel, scale
        return out

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, block_indices, out, lse = ctx.saved_tensors
        gradients = [
            _backward(
                *_wide(q[lanes], k[lanes], v[lanes], out[lanes], d_out[lanes]),
                lse[lanes], block_indices[lanes], ctx.l_sel, ctx.scale,
            )
            for lanes in _chunks(q, v, block_indices, ctx.l_sel)
        ]  # fmt: skip
        d_q, d_k, d_v = (torch.cat(parts) for parts in zip(*gradients, strict=True))
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype), None, None, None


def _wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _chunks(q: torch.Tensor, v: torch.Tensor, block_indices: torch.Tensor, l_sel: int) -> list[slice]:
    """Cut the lanes into chunks whose packed queries and partial outputs stay near CHUNK_BYTES, one lane at least."""
    lanes, length, share, width = q.shape
    slots = length * block_indices.shape[-1] + -(-length // l_sel) * _queries_per_tile(share)
    size = max(1, CHUNK_BYTES // (slots * share * (width + v.shape[-1]) * max(4, q.element_size())))
    return [slice(start, start + size) for start in range(0, lanes, size)]


def _queries_per_tile(share: int) -> int:
    return max(1, TILE_ROWS // share)


def _tiles_and_blocks(k, v, block_indices, l_sel, share):
    """Pack the pairs, and cut keys and values into blocks, [L, T, D] -> [L, N, l_sel, D]."""
    k, v = (F.pad(x, (0, 0, 0, -x.shape[1] % l_sel)).unflatten(1, (-1, l_sel)) for x in (k, v))
    return Tiles.pack(block_indices, k.shape[1], _queries_per_tile(share)), k, v


def _forward(q, k, v, block_indices, l_sel, scale):
    """Return the output [L, T, R, d_v] and the log-sum-exp of each row's logits [L, T, R]."""
    share = q.shape[2]
    tiles, k, v = _tiles_and_blocks(k, v, block_indices, l_sel, share)
    logits = tiles.logits(tiles.rows(q), tiles.blocks(k), scale)
    lse = logits.logsumexp(dim=-1, keepdim=True)
    # A block all of whose tokens are in a query's future has no weight; its partial must be 0 and not NaN.
    partial = (logits - lse.masked_fill(lse == -torch.inf, 0)).exp() @ tiles.blocks(v)
    lse = tiles.pairs(lse, share).masked_fill_(tiles.padding[..., None, None], -torch.inf)
    total = lse.logsumexp(dim=2, keepdim=True)
    out = ((lse - total).exp() * tiles.pairs(partial, share)).sum(dim=2)
    return out, total[:, :, 0, :, 0]


def _backward(q, k, v, out, d_out, lse, block_indices, l_sel, scale):
    """Return the gradients of q [L, T, R, D], k [L, T, D] and v [L, T, d_v]."""
    share, length = q.shape[2], k.shape[1]
    tiles, k, v = _tiles_and_blocks(k, v, block_indices, l_sel, share)
    q_rows, d_rows, k_tiles = tiles.rows(q), tiles.rows(d_out), tiles.blocks(k)
    p = (tiles.logits(q_rows, k_tiles, scale) - tiles.rows(lse[..., None])).exp_()
    delta = tiles.rows((out * d_out).sum(dim=-1, keepdim=True))
    d_s = p * (d_rows @ tiles.blocks(v).mT - delta) * scale
    d_q = tiles.pairs(d_s @ k_tiles, share).masked_fill_(tiles.padding[..., None, None], 0).sum(dim=2)
    d_k, d_v = k.new_zeros(k.shape), v.new_zeros(v.shape)
    for d_blocks, d_tiles in ((d_k, d_s.mT @ q_rows), (d_v, p.mT @ d_rows)):
        row = torch.arange(len(k), device=k.device)[:, None] * k.shape[1] + tiles.block
        d_blocks.view(-1, *d_blocks.shape[2:]).index_add_(0, row.flatten(), d_tiles.flatten(0, 1))
    return d_q, d_k.flatten(1, 2)[:, :length], d_v.flatten(1, 2)[:, :length]
