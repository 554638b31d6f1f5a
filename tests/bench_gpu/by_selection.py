"""The selected branch of `fused` on each kind of selection, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench_gpu.contestants import FUSED
from tests.bench_gpu.floors import BACKWARD, FORWARD
from tests.bench_gpu.problem import SELECTIONS
from tests.bench_gpu.rows import Row, markdown, with_ratios

RANDOM = "random"
KINDS = {FUSED: RANDOM, **{f"{FUSED}, {selection}": selection for selection in SELECTIONS}}
"""Contestants, by the names of the columns."""


def by_selection(rows: Sequence[Row]) -> str:
    """Return a markdown table, a line for each layout, length and mode: ms forward / backward, and over dense.

    A kind without a right figure has an empty cell. Nothing where no line has a figure of more than random blocks.
    """
    found: dict[tuple[str, int, str], dict[str, dict[str, dict]]] = {}
    for row in with_ratios(rows):
        if row["part"] == "selected" and row["contestant"] in KINDS and row["median_ms"] and not row["reason"]:
            kinds = found.setdefault((row["layout"], row["seq_len"], row["mode"]), {})
            kinds.setdefault(KINDS[row["contestant"]], {})[row["direction"]] = row
    lines = [
        {
            "layout": layout,
            "S": f"{length:,}",
            "mode": mode,
            **{kind: _cell(kinds.get(kind, {})) for kind in KINDS.values()},
        }
        for (layout, length, mode), kinds in found.items()
        if set(kinds) - {RANDOM}
    ]
    return markdown(lines) if lines else ""


def _cell(ways: dict[str, dict]) -> str:
    if not {FORWARD, BACKWARD} <= set(ways):
        return ""
    both = [ways[FORWARD], ways[BACKWARD]]
    said = " / ".join(f"{row['median_ms']:.3g}" for row in both)
    over = [row["over_dense"] for row in both]
    return said if None in over else f"{said} ({' / '.join(f'{ratio:.3g}x' for ratio in over)} dense)"
