"""Selected attention by gathering, for each query, the keys and values of its blocks, in chunks of bounded size.

Backward gathers again instead of keeping what forward gathered, and sums the gradients of keys and values in float32:
in bfloat16 the thousands of contributions to block 0 would be lost.

Letters: B batch, T queries, H heads, G groups, R = H / G heads a group, D head width, N selection blocks, n blocks a
query, M = n * l_sel gathered tokens, c queries in a chunk.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.profiler import record_function

from nsa_lib.subject.attention.protocol import ROUTE_PREFIX
from nsa_lib.subject.attention.route import named

CHUNK_BYTES = 64 * 2**20
"""Most bytes of the keys that a chunk gathers; the values take as much, and in backward one of the two gradients."""

CHUNK_SHARE = 20
"""The same, as a multiple of the bytes of all keys: a small layer must not gather more than the rest of its model."""


def gather(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_indices: torch.Tensor, *, l_sel: int, scale: float
) -> torch.Tensor:
    """Attend to the selected blocks by gathering them (see `backends` for arguments and shapes)."""
    with record_function(f"{ROUTE_PREFIX}gather"):
        q_grouped = named(q, f"{ROUTE_PREFIX}gather").unflatten(1, (k.shape[1], -1)).transpose(2, 3)
        out = _Gather.apply(q_grouped, k, v, block_indices, l_sel, scale)
        return out.transpose(2, 3).flatten(1, 2)


class _Gather(torch.autograd.Function):
    """softmax(q kᵀ scale) v over gathered tokens, and its gradient, both chunk by chunk; q is [B, G, T, R, D]."""

    @staticmethod
    def forward(ctx, q, k, v, block_indices, l_sel, scale):
        ctx.save_for_backward(q, k, v, block_indices)
        ctx.l_sel, ctx.scale = l_sel, scale
        dtype = q.dtype
        q, k, v = _wide(q), _blocks(k, l_sel), _blocks(v, l_sel)
        source, hidden = _source(block_indices, k), _hidden(block_indices, l_sel)
        outputs = []
        for rows in _chunks(q, source, l_sel):
            p = _probabilities(q[:, :, rows], _gathered(k, source[:, :, rows]), hidden[:, :, rows], scale)
            outputs.append((p @ _gathered(v, source[:, :, rows])).to(dtype))
        return torch.cat(outputs, dim=2)

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, block_indices = ctx.saved_tensors
        dtypes, length = [x.dtype for x in (q, k, v)], k.shape[2]
        q, k, v, d_out = _wide(q), _blocks(k, ctx.l_sel), _blocks(v, ctx.l_sel), _wide(d_out)
        source, hidden = _source(block_indices, k), _hidden(block_indices, ctx.l_sel)
        d_q, d_k, d_v = [], k.new_zeros(k.shape), v.new_zeros(v.shape)
        for rows in _chunks(q, source, ctx.l_sel):
            q_rows, d_rows, source_rows = q[:, :, rows], d_out[:, :, rows], source[:, :, rows]
            k_rows = _gathered(k, source_rows)
            p = _probabilities(q_rows, k_rows, hidden[:, :, rows], ctx.scale)
            _scatter_add(d_v, source_rows, p.mT @ d_rows)
            d_p = d_rows @ _gathered(v, source_rows).mT
            d_s = p * (d_p - (p * d_p).sum(dim=-1, keepdim=True)) * ctx.scale
            d_q.append(d_s @ k_rows)
            _scatter_add(d_k, source_rows, d_s.mT @ q_rows)
        gradients = torch.cat(d_q, dim=2), *(x.flatten(2, 3)[:, :, :length] for x in (d_k, d_v))
        return *(gradient.to(dtype) for gradient, dtype in zip(gradients, dtypes, strict=True)), None, None, None


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _blocks(x: torch.Tensor, l_sel: int) -> torch.Tensor:
    """Cut keys or values into blocks, in float32 at least, [B, G, T, D] -> [B, G, N, l_sel, D]."""
    return F.pad(_wide(x), (0, 0, 0, -x.shape[2] % l_sel)).unflatten(2, (-1, l_sel))


def _source(block_indices: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Turn block indices [B, G, T, n] into rows of the blocks of all groups together, same shape; padding reads 0."""
    batch, groups, selectable = blocks.shape[:3]
    first = torch.arange(batch * groups, device=blocks.device).view(batch, groups, 1, 1) * selectable
    return block_indices.clamp(min=0) + first


def _hidden(block_indices: torch.Tensor, l_sel: int) -> torch.Tensor:
    """Return whether a gathered token is in the query's future or padding, [B, G, T, 1, M]."""
    queries = torch.arange(block_indices.shape[2], device=block_indices.device)[:, None]
    last_seen = (queries - block_indices * l_sel).masked_fill(block_indices < 0, -1)
    return (torch.arange(l_sel, device=queries.device) > last_seen[..., None]).flatten(3)[..., None, :]


def _chunks(q: torch.Tensor, source: torch.Tensor, l_sel: int) -> list[slice]:
    """Cut the queries into chunks whose gathered keys stay below both bounds, one query at least."""
    batch, groups, length, n = source.shape
    token_bytes = batch * groups * q.shape[-1] * q.element_size()
    size = max(1, min(CHUNK_BYTES, CHUNK_SHARE * length * token_bytes) // (n * l_sel * token_bytes))
    return [slice(start, start + size) for start in range(0, length, size)]


def _gathered(blocks: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Gather blocks, [B, G, N, l_sel, D] and their rows [B, G, c, n] -> [B, G, c, M, D]."""
    flat = blocks.flatten(0, 2)
    return flat.index_select(0, source.flatten()).view(*source.shape[:3], -1, flat.shape[-1])


def _scatter_add(blocks: torch.Tensor, source: torch.Tensor, gathered: torch.Tensor) -> None:
    """Add [B, G, c, M, D] to the blocks it was gathered from, in place: the transpose of `_gathered`."""
    flat = blocks.flatten(0, 2)
    flat.index_add_(0, source.flatten(), gathered.view(-1, *flat.shape[1:]))


def _probabilities(q: torch.Tensor, k: torch.Tensor, hidden: torch.Tensor, scale: float) -> torch.Tensor:
    """Return softmax(q kᵀ scale) over the gathered tokens that are not hidden, [B, G, c, R, M]."""
    return (q @ k.mT * scale).masked_fill_(hidden, -torch.inf).softmax(dim=-1)
