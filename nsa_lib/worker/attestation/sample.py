"""Which layers and which rows of a run are judged: the edges where attention goes wrong, and random ones."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from nsa_lib.subject.config import ModelConfig, NSAConfig

MOST_POSITIONS = 192
"""Rows of a sequence that are judged; all sequences of the batch have the same."""
ENDS = 4
"""Rows at the start and at the end that are always judged."""
ALL_LAYERS_TOKENS = 2**15
"""Tokens times layers up to which every layer is judged: the checklist's 12 layers of 2,048 are 24,576."""
FEWEST_LAYERS = 3
"""Layers judged beyond that: the first, the last and a random one."""

GRADIENT_LOGITS = 7.5e10
"""Queries times keys, over all heads, whose gradients are computed again, at most, a step: 12 s on an H200. All the
checklist's layers have 6e8; one layer of 12 heads at 65,536 tokens has 5.2e10. One layer is always judged."""


@dataclass(frozen=True)
class Sample:
    """What is judged of a step."""

    layers: tuple[int, ...]
    """Indices from 0, ascending."""
    gradient_layers: tuple[int, ...]
    """Those among them whose gradients are judged, from all rows."""
    positions: tuple[int, ...]
    """Rows of every sequence, ascending."""
    asked: ModelConfig
    """The model that was asked for. The judge takes sizes and backend from here, never from the layers themselves."""
    batch: int
    length: int

    @property
    def said(self) -> str:
        """What was compared, in one line."""
        if not self.layers:
            return f"the train step alone, {self.batch * self.length:,} rows, length {self.length:,}"
        which, every = ", ".join(str(i + 1) for i in self.layers), self.asked.layers
        layers = f"all {every} layers" if 1 < len(self.layers) == every else f"layers {which} of {every}"
        rows = len(self.positions) * self.batch
        of = f"{rows:,} of {self.batch * self.length:,} rows"
        said = f"{layers}, {of}, length {self.length:,}"
        if self.gradient_layers == self.layers:
            return said
        return f"{said}; gradients of layers {', '.join(str(i + 1) for i in self.gradient_layers)}"


def sample(model: ModelConfig, *, batch: int, length: int, seed: int) -> Sample:
    """Return what is judged of a step on `batch` sequences of `length` tokens; the same for one seed.

    Another seed for another step judges other rows and, where not all are judged, other layers.
    """
    draw = random.Random(seed)
    layers = _layers(model.layers, batch * length, draw)
    most = max(1, int(GRADIENT_LOGITS / (batch * model.nsa.heads * length**2)))
    gradient_layers = tuple(sorted(draw.sample(layers, min(most, len(layers)))))
    return Sample(layers, gradient_layers, positions(model.nsa, length, draw), model, batch, length)


def positions(config: NSAConfig, length: int, draw: random.Random) -> tuple[int, ...]:
    """Return the rows that are judged, ascending: both ends, both sides of edges, and at least a third at random.

    Edges are the first rows that do not see all before them (beyond the window, and beyond `n_sel` blocks) and those
    of blocks; where a sequence has too many of these, a spread sample.
    """
    c = config
    always = _around([c.l - 1, c.d + c.l - 1, c.w, c.w + 1, c.l_sel, c.n_sel * c.l_sel, (c.n_sel + 1) * c.l_sel])
    always |= {*range(ENDS), *range(length - ENDS, length)}
    always = {t for t in always if 0 <= t < length}
    edges = _spread(range(c.l_sel, length, c.l_sel), MOST_POSITIONS // 12)
    edges += _spread(range(c.l - 1, length, c.d), MOST_POSITIONS // 12)
    edges += _spread(range(c.w, length, c.w), MOST_POSITIONS // 24)
    chosen = always | {t for t in _around(edges) if 0 <= t < length}
    free = [t for t in range(length) if t not in chosen] if length <= 2 * MOST_POSITIONS else range(length)
    chosen |= set(draw.sample(free, min(len(free), max(MOST_POSITIONS // 3, MOST_POSITIONS - len(chosen)))))
    return tuple(sorted(chosen))


def _layers(layers: int, tokens: int, draw: random.Random) -> tuple[int, ...]:
    count = min(layers, max(FEWEST_LAYERS, ALL_LAYERS_TOKENS // tokens))
    inner = draw.sample(range(1, layers - 1), count - 2) if count > 2 else []
    return tuple(sorted({0, layers - 1, *inner}))


def _around(edges: Iterable[int]) -> set[int]:
    """Return each edge, the first row behind it, and the row before it."""
    return {t for edge in edges for t in (edge - 1, edge)}


def _spread(edges: range, most: int) -> list[int]:
    """Return at most `most` of the edges, evenly spread, the first and the last among them."""
    if len(edges) <= most:
        return list(edges)
    return [edges[round(i * (len(edges) - 1) / (most - 1))] for i in range(most)]
