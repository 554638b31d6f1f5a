"""The selected branch: which blocks of tokens each query reads, and attention to the tokens of those blocks.

Letters: B batch, T queries, H heads, G groups, D head width, C compressed tokens, N = ceil(T / l_sel) selection blocks.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from nsa_lib.subject.attention.backends import BACKENDS
from nsa_lib.subject.attention.tables import table

PAD = -1
"""Index of no block, at the end of a row that selects fewer than n_sel."""


@torch.no_grad()
def block_scores(p_cmp: torch.Tensor, *, groups: int, l: int, d: int, l_sel: int) -> torch.Tensor:
    """Return the importance of each selection block, from the attention to the compressed tokens (Eqs. 9, 10).

    A compressed token counts for a block by the tokens that they share, over d. A group adds the scores of its heads.
    There is no gradient.

    Args:
        p_cmp: [B, H, T, C].
        groups: KV heads.
        l: tokens in a compression block.
        d: tokens from one compression block to the next.
        l_sel: tokens in a selection block.

    Returns:
        [B, G, T, N].
    """
    length, blocks = p_cmp.shape[2:]
    per_group = p_cmp if groups == p_cmp.shape[1] else p_cmp.unflatten(1, (groups, -1)).sum(dim=2)
    return per_group @ shared_tokens(blocks, -(-length // l_sel), l, d, l_sel, p_cmp.dtype, p_cmp.device)


@table
def shared_tokens(
    blocks: int, selectable: int, l: int, d: int, l_sel: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return the tokens that compression block i and selection block j share, over d, [C, N]."""
    first, start = torch.arange(blocks, device=device)[:, None] * d, torch.arange(selectable, device=device) * l_sel
    shared = torch.minimum(first + l, start + l_sel) - torch.maximum(first, start)
    return shared.clamp(min=0).to(dtype) / d


def select_blocks(scores: torch.Tensor, *, l_sel: int, n_sel: int) -> torch.Tensor:
    """Return the blocks that each query reads (Eqs. 11, 12): block 0, its own and the one before, then by score.

    Only blocks that start at or before the query; ties go to the lower index.

    Args:
        scores: [B, G, T, N], finite.
        l_sel: tokens in a selection block.
        n_sel: blocks to select, 3 or more.

    Returns:
        int64 [B, G, T, n_sel], ascending, padded at the end with -1.

    Raises:
        FloatingPointError: if a score is NaN or infinite.
    """
    finite = torch.isfinite(scores)
    if not finite.all():
        raise FloatingPointError(f"{int((~finite).sum())} of {scores.numel()} block scores are NaN or infinite")
    return choose_blocks(scores, l_sel=l_sel, n_sel=n_sel)


def choose_blocks(scores: torch.Tensor, *, l_sel: int, n_sel: int) -> torch.Tensor:
    """Return what `select_blocks` does, for scores that are known to be finite: looking would wait for the device."""
    length, selectable = scores.shape[-2:]
    ranked = scores.detach() + rank_bias(length, selectable, l_sel, scores.dtype, scores.device)
    order = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :n_sel]
    # Blocks in the future rank last, and their number is known: they sort behind all others and become padding.
    padding = ranks_in_future(length, order.shape[-1], l_sel, scores.device)
    chosen = order.masked_fill(padding, selectable).sort(dim=-1).values.masked_fill(padding, PAD)
    return F.pad(chosen, (0, n_sel - chosen.shape[-1]), value=PAD) if chosen.shape[-1] < n_sel else chosen


@table
def rank_bias(length: int, selectable: int, l_sel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return +inf for the blocks always read, -inf for those in the future, 0 for those ranked by score, [T, N]."""
    own = torch.arange(length, device=device)[:, None] // l_sel
    block = torch.arange(selectable, device=device)
    bias = torch.zeros(length, selectable, dtype=dtype, device=device)
    bias.masked_fill_((block == 0) | (block == own) | (block == own - 1), torch.inf)
    return bias.masked_fill_(block > own, -torch.inf)


@table
def ranks_in_future(length: int, ranks: int, l_sel: int, device: torch.device) -> torch.Tensor:
    """Return whether the block ranked r by query t starts after t, as t // l_sel + 1 blocks do not, [T, ranks]."""
    return torch.arange(ranks, device=device) > torch.arange(length, device=device)[:, None] // l_sel


def selected_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_indices: torch.Tensor,
    *,
    l_sel: int,
    scale: float | None = None,
    backend: str = "masked",
) -> torch.Tensor:
    """Attend to the tokens of the selected blocks that are not in the future (Eqs. 11, 12).

    Args:
        q: rotated queries, [B, H, T, D].
        k: rotated keys, [B, G, T, D].
        v: values, [B, G, T, d_v].
        block_indices: int64 [B, G, T, n], each block at most once a row, -1 for none.
        l_sel: tokens in a block.
        scale: of the logits; 1/√D by default.
        backend: one of BACKENDS.

    Returns:
        [B, H, T, d_v]; a row that sees no token is 0.

    Raises:
        ValueError: for an unknown backend, or indices of another dtype, out of range or twice in a row.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: accepts {', '.join(BACKENDS)}")
    _check_indices(block_indices, -(-k.shape[2] // l_sel))
    queries = torch.arange(q.shape[2], device=q.device)[:, None]
    seen = ((block_indices >= 0) & (block_indices * l_sel <= queries)).any(dim=-1)
    # The backends need at least one token a row: an empty row reads block 0, and its output is cleared.
    block_0 = F.pad(torch.zeros_like(block_indices[..., :1]), (0, block_indices.shape[-1] - 1), value=PAD)
    readable = torch.where(seen[..., None], block_indices, block_0)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = BACKENDS[backend](q, k, v, readable, l_sel=l_sel, scale=scale)
    per_head = seen.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return out.masked_fill(~per_head[..., None], 0)


def _check_indices(block_indices: torch.Tensor, selectable: int) -> None:
    if block_indices.dtype != torch.int64:
        raise ValueError(f"block_indices: dtype {block_indices.dtype}, accepts torch.int64")
    if ((block_indices < PAD) | (block_indices >= selectable)).any():
        raise ValueError(f"block_indices: out of range, accepts -1 to {selectable - 1}")
    ordered = block_indices.sort(dim=-1).values
    if ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != PAD)).any():
        raise ValueError("block_indices: a row names a block twice")
