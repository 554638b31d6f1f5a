"""What each layer of a model selects on a text."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nsa_lib.subject.attention import NSAttention, block_scores, compressed_probabilities
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.selection_health import Selection, near_ties

TILES = (64, 4)
"""Queries of a tile: of kernels for heads = groups, and for groups of 16 heads."""


@torch.no_grad()
def layers(model: TinyLM, tokens: Tensor) -> tuple[list[dict[str, float | None]], list[Tensor]]:
    """Return what each layer selects on tokens [B, T]: its figures, and the blocks [B, G, T, n_sel]."""
    x, figures, chosen = model.embedding(tokens), [], []
    for block in model.blocks:
        attention: NSAttention = block.attention
        parts = attention.project(block.norm_attention(x))
        blocks = attention.choose(parts)
        figures.append(shares(blocks, attention) | score_figures(attention, parts) | gates(attention, parts))
        chosen.append(blocks)
        x = block(x)
    return figures, chosen


def shares(blocks: Tensor, attention: NSAttention) -> dict[str, float | None]:
    """Return the figures of a selection that need no scores; None where every query reads all there is."""
    c = attention.config
    if (found := Selection.of(blocks, c.l_sel)) is None:
        return {}
    return {
        "overlap": found.overlap(),
        "forced": found.forced(),
        "in_window": found.in_window(c.w),
        "never_picked": found.never_picked(),
        "choice_entropy": entropy(found.counts().double()),
        **{f"union_{tile}": union_size(found.blocks, tile) for tile in TILES},
    }


def score_figures(attention: NSAttention, parts: dict[str, Tensor]) -> dict[str, float | None]:
    """Return how often scores nearly tie, and the entropy of a row's scores, of the queries that choose, in float32."""
    c, queries = attention.config, parts["query"].float()
    length, first = queries.shape[2], c.n_sel * c.l_sel
    p = compressed_probabilities(queries, attention.compressed_keys(parts).float(), l=c.l, d=c.d)
    scores = block_scores(p, groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel)
    tied = near_ties(scores, torch.arange(length), c)
    return {"near_ties": tied, "score_entropy": None if tied is None else entropy(scores[:, :, first:].double())}


def gates(attention: NSAttention, parts: dict[str, Tensor]) -> dict[str, float]:
    """Return each branch's mean gate."""
    means = parts["branch_gates"].double().mean(dim=(0, 1, 2))
    return {f"gate_{name}": float(mean) for name, mean in zip(attention.config.branches, means, strict=True)}


def union_size(blocks: Tensor, tile: int) -> float:
    """Return how many blocks the queries of a tile read together, in the mean; of blocks [B, G, Q, n]."""
    whole = blocks.shape[2] // tile * tile
    together = blocks[:, :, :whole].unflatten(2, (-1, tile)).flatten(3).sort(dim=-1).values
    return float((together.diff(dim=-1) > 0).sum(dim=-1).double().add(1).mean())


def entropy(weights: Tensor) -> float:
    """Return the entropy of weights along the last dimension over that of equal ones, in the mean of all rows."""
    share = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return float(torch.special.entr(share).sum(dim=-1).mean() / math.log(weights.shape[-1]))
