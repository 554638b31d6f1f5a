"""Judge the blocks that a run selected, by the exact scores of its own input.

A block may stand in the place of one with a higher score only where rounding can turn their order: where their exact
scores lie no further apart than the errors of two scores. That error is what the reference's scores in the run's
arithmetic are off by, in this row or, relative to the score, in all rows. `fused` ranks by leading bits alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lib.subject.config import FUSED, NSAConfig
from nsa_lib.worker.attestation.rounding import MARGIN

FUSED_RESOLUTION = 2.0**-14
"""Relative to a row's best score: what `fused` takes for equal, with up to 1,024 blocks."""
BITS = 32


@dataclass(frozen=True)
class ChoiceFound:
    """What was found of a choice of blocks."""

    rows: int
    """Rows compared, each group's its own."""
    scored: int
    """Rows among them in which scores decide: they have more blocks to choose from than they take."""
    broken: int
    """Rows that break a rule: a fixed block missing, one in the future, one twice, too few, not in order."""
    differ: int
    """Rows that chose otherwise than the exact scores."""
    given_away_percent: float
    """Of the scores of the best choice, over all rows."""
    ratio: float
    """The most that a row gave away in one block, over what rounding explains."""
    at: tuple[int, int, int]
    """That row, or one that breaks a rule: sequence, group, position."""

    @property
    def ok(self) -> bool:
        """Whether every row keeps the rules and is within what rounding explains."""
        return not self.broken and self.ratio <= 1

    @property
    def said(self) -> str:
        """What was found, in a sentence."""
        if self.broken:
            return f"{self.broken:,} of {self.rows:,} rows break a rule, one at {self.at}"
        given_away = f"{self.given_away_percent:.2g} % of the scores are given away"
        return f"{given_away}, {self.ratio:.3g} times what rounding explains at {self.at}"


def unpacked(shown: Mapping[str, Tensor], config: NSAConfig) -> Tensor | None:
    """Return the blocks that a layer showed, int64 [B, G, T, n], -1 for none; or None if it showed none."""
    if "blocks" in shown:
        return shown["blocks"].long()
    if "block_bits" not in shown:
        return None
    block = torch.arange(BITS)
    chosen = (shown["block_bits"][..., None] >> block) & 1 == 1
    most = max(config.n_sel, int(chosen.sum(dim=-1).max()))
    listed = torch.where(chosen, block, BITS).sort(dim=-1).values[..., :most]
    return listed.masked_fill(listed == BITS, -1)


def judge_choice(
    chosen: Tensor, exact: Tensor, modelled: Tensor, positions: Sequence[int], config: NSAConfig, backend: str
) -> ChoiceFound:
    """Judge the choice [B, G, R, n] of the rows at `positions` by block scores [B, G, R, N], exact and modelled."""
    exact, modelled, chosen = exact.double().cpu(), modelled.double().cpu(), chosen.cpu()
    t = torch.tensor(positions)[:, None]
    block, own = torch.arange(exact.shape[-1]), t // config.l_sel
    fixed = (block == 0) | (block == own) | (block == own - 1)
    taken = _taken(chosen, exact.shape[-1])
    broken = _broken(chosen, taken, fixed, own, config.n_sel)
    free = ~fixed & (block <= own)
    best_left = exact.masked_fill(~(free & ~taken), 0).amax(dim=-1)
    worst_taken = exact.masked_fill(~(free & taken), torch.inf).amin(dim=-1)
    given_away = (best_left - worst_taken).clamp(min=0)
    ratio = torch.where(given_away == 0, 0.0, given_away / _explained(exact, modelled, free, backend))
    count = (config.n_sel - fixed.sum(dim=-1)).clamp(min=0)
    ranked = exact.masked_fill(~free, -1).sort(dim=-1, descending=True).values.clamp(min=0)
    best = (ranked * (block < count[:, None])).sum(dim=-1)
    lost = (best - (exact * (free & taken)).sum(dim=-1)).clamp(min=0)
    worst = (ratio + broken * 1e9).flatten().argmax()
    b, g, row = (int(i) for i in torch.unravel_index(worst, ratio.shape))
    return ChoiceFound(
        rows=ratio.numel(),
        scored=int((free.sum(dim=-1) > count).sum()) * ratio.shape[0] * ratio.shape[1],
        broken=int(broken.sum()),
        differ=int((given_away > 0).sum()),
        given_away_percent=float(100 * lost.sum() / best.sum()) if best.sum() else 0.0,
        ratio=float(ratio.max()),
        at=(b, g, positions[row]),
    )


def _taken(chosen: Tensor, blocks: int) -> Tensor:
    """Return whether each block is taken, [B, G, R, N]."""
    listed = torch.zeros(*chosen.shape[:3], blocks + 1, dtype=torch.bool)
    return listed.scatter_(3, torch.where((chosen >= 0) & (chosen < blocks), chosen, blocks), True)[..., :blocks]


def _broken(chosen: Tensor, taken: Tensor, fixed: Tensor, own: Tensor, n_sel: int) -> Tensor:
    """Return which rows break a rule, [B, G, R]."""
    wanted = (own[:, 0] + 1).clamp(max=n_sel)
    kept = chosen >= 0
    # Ascending, each once, padding at the end: then every step up to the last block kept goes up.
    rises = (chosen[..., 1:] > chosen[..., :-1]) | ~kept[..., 1:]
    future = chosen > own
    return (
        ((taken & fixed) != fixed).any(dim=-1)
        | future.any(dim=-1)
        | ~rises.all(dim=-1)
        | (kept.sum(dim=-1) != wanted)
        | (taken.sum(dim=-1) != wanted)
    )


def _explained(exact: Tensor, modelled: Tensor, free: Tensor, backend: str) -> Tensor:
    """Return how far apart two blocks may lie whose order rounding turned, [B, G, R]."""
    error = (modelled - exact).abs().masked_fill(~free, 0)
    score = exact.masked_fill(~free, 0)
    relative = error.norm() / score.norm().clamp(min=torch.finfo(torch.float64).tiny)
    largest = score.amax(dim=-1)
    resolution = FUSED_RESOLUTION * largest if backend == FUSED else 0.0
    return 2 * MARGIN * torch.maximum(error.amax(dim=-1), relative * largest) + resolution
