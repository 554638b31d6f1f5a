"""What a selection of blocks is worth: do neighbours agree, do scores decide, is there anything beyond the window?

A query *chooses* if more blocks lie before it than it reads; all others read whatever there is. Of the blocks that it
reads, three are forced: block 0, its own and the one before. The others are *picked*, by their scores. Everything here
is about the queries that choose; where there is none, there is nothing to say.

Letters: B batch, G groups, T queries, n blocks a query reads, N blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lib.subject.config import NSAConfig

FORCED = 3
"""Blocks that a query reads whatever their scores."""

NEAR_TIE = 2.0**-8
"""Two scores nearly tie if they differ by no more than this share of the larger: half a step of bfloat16."""


STUCK = 0.01
"""A gate that is never further than this from 0 or 1 is stuck there."""


@dataclass(frozen=True)
class SelectionHealth:
    """What was found of a layer. A share is None where nothing chooses or is picked, or what it needs is not known."""

    choosing: float
    """Share of the queries that choose."""
    overlap: float | None
    forced: float | None
    in_window: float | None
    never_picked: float | None
    near_ties: float | None
    gates: dict[str, float]
    """The mean of each branch's gates."""
    shut: dict[str, int]
    """Heads whose gate of a branch is stuck at 0."""
    wide_open: dict[str, int]
    """Heads whose gate of a branch is stuck at 1."""
    heads: int | None
    by_union: float | None = None
    """Share of the tiles of queries whose dq kernels made over the union of their blocks; None where none decides."""


@dataclass(frozen=True)
class Selection:
    """A choice of blocks by the queries that choose."""

    blocks: Tensor
    """int64 [B, G, Q, n], ascending: of the last Q queries, those that choose."""
    first: int
    """The first query that chooses."""
    length: int
    l_sel: int

    @classmethod
    def of(cls, blocks: Tensor, l_sel: int) -> Selection | None:
        """Return the choice within blocks [B, G, T, n], -1 for none; None if every query reads all there is."""
        length, n = blocks.shape[2:]
        first = n * l_sel
        if first >= length:
            return None
        return cls(blocks[:, :, first:].long(), first, length, l_sel)

    @property
    def own(self) -> Tensor:
        """The block that each choosing query lies in, [Q, 1]."""
        return torch.arange(self.first, self.length, device=self.blocks.device)[:, None] // self.l_sel

    @property
    def picked(self) -> Tensor:
        """Which of the blocks were picked by their scores, bool [B, G, Q, n]."""
        return (self.blocks > 0) & (self.blocks < self.own - 1)

    @property
    def candidates(self) -> int:
        """Blocks that some query may pick: all between block 0 and the last two."""
        return max(0, (self.length - 1) // self.l_sel - 2)

    def forced(self) -> float:
        """Return the share of what is read that is forced."""
        return 1 - int(self.picked.sum()) / int((self.blocks >= 0).sum())

    def overlap(self) -> float | None:
        """Return the share of a query's picked blocks that the query before it read too; None for one query."""
        now, before = self.blocks[:, :, 1:], self.blocks[:, :, :-1]
        picked = self.picked[:, :, 1:]
        kept = torch.zeros_like(picked)
        for place in range(before.shape[-1]):  # n at a time: n x n at once would take n times the memory
            kept |= now == before[..., place, None]
        return _share(kept & picked, picked)

    def in_window(self, w: int) -> float | None:
        """Return the share of the picked blocks whose tokens a window of w tokens, the own included, sees anyhow."""
        query = torch.arange(self.first, self.length, device=self.blocks.device)[:, None]
        return _share(self.picked & (self.blocks * self.l_sel > query - w), self.picked)

    def counts(self) -> Tensor:
        """Return how many queries picked each candidate, int64 [B, G, candidates]."""
        batch, groups = self.blocks.shape[:2]
        counts = torch.zeros(batch, groups, self.candidates + 2, dtype=torch.int64, device=self.blocks.device)
        picked = torch.where(self.picked, self.blocks, 0).flatten(2)  # block 0 is never picked
        return counts.scatter_add_(2, picked, torch.ones_like(picked))[..., 1 : self.candidates + 1]

    def never_picked(self) -> float | None:
        """Return the share of the candidates that no query picks, each group's and sequence's own."""
        counts = self.counts()
        return float((counts == 0).double().mean()) if counts.numel() else None


def selection_health(
    blocks: Tensor,
    *,
    l_sel: int,
    w: int,
    gates: Tensor | None,
    gate_names: Sequence[str],
    ties: float | None = None,
    by_union: Tensor | None = None,
) -> SelectionHealth:
    """Return what a layer's selection is worth.

    Args:
        blocks: that its queries read, int64 [B, G, T, n], -1 for none.
        l_sel: tokens in a block.
        w: tokens that its sliding branch sees.
        gates: of some queries, [B, H, R, branches]; None if it shows none.
        gate_names: of the branches.
        ties: as `near_ties` finds them; None where the scores are not known.
        by_union: which tiles' dq was made so; None where kernels do not decide.
    """
    found, (length, n) = Selection.of(blocks, l_sel), blocks.shape[2:]
    known = {} if gates is None else dict(zip(gate_names, gates.double().unbind(-1), strict=True))
    return SelectionHealth(
        choosing=max(0, length - n * l_sel) / length,
        overlap=found and found.overlap(),
        forced=found and found.forced(),
        in_window=found and found.in_window(w),
        never_picked=found and found.never_picked(),
        near_ties=ties,
        gates={name: float(gate.mean()) for name, gate in known.items()},
        shut={name: int((gate.amax(dim=(0, 2)) <= STUCK).sum()) for name, gate in known.items()},
        wide_open={name: int((gate.amin(dim=(0, 2)) >= 1 - STUCK).sum()) for name, gate in known.items()},
        heads=None if gates is None else gates.shape[1],
        by_union=None if by_union is None else float(by_union.double().mean()),
    )


def near_ties(scores: Tensor, positions: Tensor, config: NSAConfig) -> float | None:
    """Return in which share of rows the order of two scores that nearly tie decided what was read.

    They are the lowest score that is picked and the highest that is not. Rows that do not choose do not count; None if
    none does.

    Args:
        scores: of the blocks, [B, G, R, N].
        positions: the queries of the rows, [R].
        config: sizes.
    """
    c = config
    chooses = positions >= c.n_sel * c.l_sel
    if not bool(chooses.any()):
        return None
    own = positions[chooses][:, None].to(scores.device) // c.l_sel
    block = torch.arange(scores.shape[-1], device=scores.device)
    free = (block > 0) & (block < own - 1)
    ranked = scores[:, :, chooses].masked_fill(~free, -torch.inf).sort(dim=-1, descending=True).values
    last, next_best = ranked[..., c.n_sel - FORCED - 1], ranked[..., c.n_sel - FORCED]
    if c.n_sel == FORCED:  # nothing is picked
        return None
    return float((last - next_best <= NEAR_TIE * last.abs()).double().mean())


def _share(part: Tensor, whole: Tensor) -> float | None:
    of = int(whole.sum())
    return int(part.sum()) / of if of else None
