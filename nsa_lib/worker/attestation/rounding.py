"""How far a run may lie from the exact result, row by row.

The judge computes a result twice (`attention.arithmetic`): exactly, and with the roundings that a correct
implementation in the run's dtype may make. The second misses the first by a vector that is one draw of what rounding
does to that very row: logits of this size, this much cancellation, this angle. A correct run misses it by another draw.
What no draw shows is added: one rounding of the result, and the order of the sums that lead to it.

MARGIN is the factor between two draws. Row errors are norms over 32 entries or more, of which at least 8 are
independent in effect; the ratio of two such norms exceeds 4 once in 3,000 at 8, once in a million at 16 (the square
has an F distribution), and the model rounds more often than implementations do. Whatever is wrong in a tenth of a row
lies far beyond: at bfloat16 a row is allowed some 2 %, at float32 some 1e-5.

What is too large by one factor everywhere may be within that in each row. Rounding errs in each row in another way, so
that over all rows together such a factor shows: it may be no more than one rounding, of a factor that all rows share,
and what the rows' own errors leave of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 4.0
NARROW = 8
"""Entries of a row below which it is judged together with its neighbours: the ratio of two draws has no bound there."""
NEIGHBOURHOOD = 32
"""Entries that are judged together then."""
BAND_ROWS = 32
"""Rows of a weight whose gradients are judged together. Inputs have a common mean, along which the errors of all tokens
add up to one number a row: too few to be held against another draw of it."""
TELLING = 0.5
"""Allowed relative error below which zeros, or another row in its place, could not pass."""


@dataclass(frozen=True)
class Comparison:
    """What was found of one part of a layer or a step. A ratio above 1 is an error; None, that it was not finite."""

    rows: int
    """Rows compared."""
    telling: int
    """Rows among them in which zeros, or for a row of zeros anything else, would have been found; the others are
    smaller than what rounding leaves."""
    ratio: float | None
    """Largest error of a row, over what is allowed in that row."""
    error: float | None
    """Relative error of that row."""
    allowed: float
    """Relative error allowed in that row."""
    at: tuple[int, ...]
    """Where that row is: its sequence and its position, or its index in a parameter."""
    factor: float = 1.0
    """By which all rows together are too large: that by which the exact ones come nearest to what was found."""
    factor_allowed: float = math.inf
    """How far that may be from 1."""

    @property
    def ok(self) -> bool:
        """Whether every row is within what is allowed, and all together."""
        return self.ratio is not None and self.ratio <= 1 and abs(self.factor - 1) <= self.factor_allowed

    @property
    def said(self) -> str:
        """What was found, in a sentence."""
        if self.error is None:
            return f"not finite at {self.at}"
        if self.ratio <= 1 and not self.ok:
            off = f"{self.factor - 1:.2g} too large, where rounding explains {self.factor_allowed:.2g}"
            return f"all rows together are by a factor of {off}"
        return f"relative error {self.error:.2g} at {self.at}, where rounding explains {self.allowed:.2g}"


def compare(
    found: Tensor,
    exact: Tensor,
    modelled: Tensor,
    *,
    dtype: torch.dtype,
    terms: int,
    positions: Sequence[int] | None = None,
    pooled: bool = False,
) -> Comparison:
    """Compare what a run found with what is right, a row at a time.

    Args:
        found: the run's, [..., n]; rows are all but the last dimension.
        exact: float64, of the same shape.
        modelled: the same in the run's arithmetic.
        dtype: of the run.
        terms: of the longest sum on the way.
        positions: of the rows along the last dimension but one, where those are a sample.
        pooled: one rounding makes most of a row's error; each row is allowed what the median row loses too.
    """
    exact, modelled = exact.double(), modelled.double()
    found = found.detach().to(exact.device).double()
    if found.shape != exact.shape:
        raise ValueError(f"compared {tuple(found.shape)} with {tuple(exact.shape)}")
    size, allowed = _norm(exact), _allowed(exact, modelled, dtype, terms, pooled)
    error = _norm(found - exact)
    ratio = torch.where(error == 0, 0.0, error / allowed).nan_to_num(nan=math.inf, posinf=math.inf)
    worst = int(ratio.argmax())
    worst_error, worst_allowed, worst_size = (float(x.flatten()[worst]) for x in (error, allowed, size))
    relative = worst_size or 1.0
    return Comparison(
        rows=ratio.numel(),
        telling=int(((allowed < TELLING * size) | (size == 0)).sum()),
        ratio=_finite(float(ratio.flatten()[worst])),
        error=_finite(worst_error / relative),
        allowed=worst_allowed / relative,
        at=_place(worst, ratio.shape, positions),
        **_factor(found, exact, modelled, allowed, _own(dtype, terms)),
    )


def banded(weight: Tensor) -> Tensor:
    """Return the gradient of a weight with BAND_ROWS rows side by side as one, [bands, n]; of a vector one row.

    A row that is missing is nothing in the norm of thousands.
    """
    if weight.dim() < 2:
        return weight.reshape(1, -1)
    missing = -len(weight) % BAND_ROWS
    return torch.nn.functional.pad(weight, (0, 0, 0, missing)).reshape(-1, BAND_ROWS * weight.shape[1])


def _place(index: int, shape: torch.Size, positions: Sequence[int] | None) -> tuple[int, ...]:
    """Return where a row of that index is, the last figure as a position of the sequence if those are given."""
    *before, row = (int(i) for i in torch.unravel_index(torch.tensor(index), shape))
    return (*before, row if positions is None else positions[row])


def _allowed(exact: Tensor, modelled: Tensor, dtype: torch.dtype, terms: int, pooled: bool) -> Tensor:
    """Return how far each row may lie from the exact one, [...]."""
    own = _own(dtype, terms)
    least, size, draw = _smallest(dtype, exact.shape[-1]), _norm(exact), _norm(modelled - exact)
    if pooled:
        draw = torch.maximum(draw, (draw / size).nanmedian().nan_to_num(posinf=0.0) * size)
    return MARGIN * torch.hypot(draw, own * size + least)


def _own(dtype: torch.dtype, terms: int) -> float:
    """Return the relative error of one rounding, and of the order of the sums that lead to it."""
    wide = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    return math.hypot(torch.finfo(dtype).eps / 2, math.sqrt(terms) * wide)


def _factor(found: Tensor, exact: Tensor, modelled: Tensor, allowed: Tensor, own: float) -> dict[str, float]:
    """Return by which factor all rows together are too large, and how far it may be from 1, as Comparison has them."""
    squares = float(exact.square().sum())
    if squares == 0:
        return {}
    factor, draw = (1 + float(((x - exact) * exact).sum()) / squares for x in (found, modelled))
    of_rows = math.sqrt(float((allowed * exact.norm(dim=-1)).square().sum())) / squares
    if not (math.isfinite(factor) and math.isfinite(draw)):
        return {}  # which row it is, is said of the rows
    return {"factor": factor, "factor_allowed": own + MARGIN * abs(draw - 1) + of_rows}


def _norm(x: Tensor) -> Tensor:
    """Return the norm of each row, [...]; of narrow rows that of the row and those after it, up to NEIGHBOURHOOD.

    They are norms of so many entries by turns: each row is still judged, in the company of others.
    """
    norm, rows = x.norm(dim=-1), x.shape[-2] if x.dim() > 1 else 1
    together = min(rows, -(-NEIGHBOURHOOD // x.shape[-1]))
    if x.shape[-1] >= NARROW or together == 1:
        return norm
    squares = torch.cat([norm, norm[..., : together - 1]], dim=-1) ** 2
    return squares.unfold(-1, together, 1).sum(dim=-1).sqrt()


def _smallest(dtype: torch.dtype, entries: int) -> float:
    """Return what a row may lose below the smallest number of its dtype."""
    return math.sqrt(entries) * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
