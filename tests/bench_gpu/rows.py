"""What a run found: a row for each figure, their ratios to dense attention and to the floor, and the targets.

Dense attention is the best of its kernels, for each layout, length, direction and mode apart; a ratio never crosses
those. A figure that is missing, or was wrong, meets no target.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from tests.bench_gpu.contestants import FUSED

EAGER, GRAPH, COMPILED = "eager", "graph", "compiled"

GROUP_1, GROUP_16 = "H=12 G=12 D=64", "H=64 G=4 D=128"

MODEL = "12-layer model"

GRAPH_LENGTH = 2048
"""The length at which attention is judged under CUDA graphs: eager, launches decide."""

GRAPHS_UP_TO = 8192
"""The greatest length that is measured under CUDA graphs too."""


SPREAD = "ms (20 % to 80 %)"

YARDSTICKS = ("cuDNN", "flash")
"""Dense attention by its two kernels: a ratio to each, beside the one to the best."""

COLUMNS = (
    *("layout", "S", "part", "contestant", "mode"),
    *(
        f"{way} {what}"
        for way in ("forward", "backward", "step")
        for what in (SPREAD, "/ dense", *(f"/ {name}" for name in YARDSTICKS), "/ floor")
    ),
    *("extra MiB", "error", "why not"),
)
"""Of the table of all rows; one that is empty is left out."""


@dataclass(frozen=True)
class Row:
    """One figure of one contestant, or why there is none."""

    layout: str
    seq_len: int
    part: str
    contestant: str
    direction: str
    """`forward`, `backward` or `step`."""
    mode: str
    """`eager`, `graph` or `compiled`."""
    reason: str = ""
    """Why there is no figure, or none that counts: skipped, failed, wrong; nothing where there is one."""
    median_ms: float | None = None
    low_ms: float | None = None
    """20 % of the calls are faster."""
    high_ms: float | None = None
    """80 % of the calls are faster."""
    first_call_s: float | None = None
    """The first call at this length, with what it compiled."""
    extra_mib: float | None = None
    """Peak beyond the inputs: of forward; of forward and backward together."""
    error: float | None = None
    """The largest relative error against float64, of output and gradients, here and at the short check."""
    floor_ms: float | None = None

    @property
    def counted_ms(self) -> float | None:
        """The median, or None where there is none or the result was wrong."""
        return None if self.reason else self.median_ms

    @property
    def heat(self) -> tuple[str, int, str, str]:
        """What rows share that may be compared."""
        return self.layout, self.seq_len, self.direction, self.mode

    @property
    def about(self) -> tuple[str, str, int, str, str]:
        """What a target can be set for."""
        return self.part, self.layout, self.seq_len, self.direction, self.mode

    @property
    def is_yardstick(self) -> bool:
        """Whether this is dense attention, or the model with it."""
        return self.part == "dense" or (self.part == "model" and self.contestant.startswith("dense"))


@dataclass(frozen=True)
class Target:
    """A bound on the time of `fused` over dense attention's."""

    part: str
    layout: str
    seq_len: int
    direction: str
    over_dense: float

    @property
    def mode(self) -> str:
        """Where it is judged."""
        return GRAPH if self.part != "model" and self.seq_len == GRAPH_LENGTH else EAGER

    @property
    def about(self) -> tuple[str, str, int, str, str]:
        """The row that it judges."""
        return self.part, self.layout, self.seq_len, self.direction, self.mode


TARGETS = tuple(
    Target(part, layout, seq_len, direction, bound)
    for layout, seq_len, part, *bounds in (
        (GROUP_1, 2048, "selected", 0.9, 0.65),
        (GROUP_1, 2048, "whole", 2.3, 1.5),
        (GROUP_1, 8192, "selected", 0.85, 0.55),
        (GROUP_1, 8192, "whole", 1.4, 1.0),
        (GROUP_1, 65536, "selected", 0.12, 0.065),
        (GROUP_1, 65536, "whole", 0.28, 0.17),
        (GROUP_16, 65536, "selected", 0.1, 0.08),
        (GROUP_16, 65536, "whole", 0.22, 0.17),
    )
    for direction, bound in zip(("forward", "backward"), bounds, strict=True)
) + tuple(Target("model", MODEL, seq_len, "step", bound) for seq_len, bound in ((2048, 1.2), (8192, 1.0), (32768, 0.5)))

MEMORY_TARGET = (GROUP_1, 65536, 1.5e9 / 2**20)
"""The extra MiB of the whole attention, forward and backward, at a layout and length."""


def dense_ms(rows: Iterable[Row]) -> dict[tuple[str, int, str, str], float]:
    """Return the time of dense attention, by what may be compared with it."""
    best: dict[tuple[str, int, str, str], float] = {}
    for row in rows:
        if row.is_yardstick and row.counted_ms is not None:
            best[row.heat] = min(row.counted_ms, best.get(row.heat, row.counted_ms))
    return best


def with_ratios(rows: Sequence[Row]) -> list[dict]:
    """Return the rows as dicts, each with its ratio `over_dense`, `over_<yardstick>` and `over_floor`, or None."""
    dense = dense_ms(rows)
    each = {name: dense_ms(row for row in rows if row.contestant.split(",")[0] == name) for name in YARDSTICKS}

    def over(row: Row, other_ms: float | None) -> float | None:
        return row.counted_ms / other_ms if row.counted_ms is not None and other_ms else None

    return [
        {
            **asdict(row),
            "over_dense": over(row, dense.get(row.heat)),
            **{f"over_{name}": over(row, ms.get(row.heat)) for name, ms in each.items()},
            "over_floor": over(row, row.floor_ms),
        }
        for row in rows
    ]


def judged_targets(rows: Sequence[Row]) -> list[dict]:
    """Return each target that the rows are about, with what was measured and whether it is met.

    Those of layouts and lengths that were not asked for are left out; one whose figure is missing is not met.
    """
    ratios = (found["over_dense"] for found in with_ratios(rows))
    measured = {row.about: ratio for row, ratio in zip(rows, ratios, strict=True) if row.contestant == FUSED}
    asked = {(row.layout, row.seq_len) for row in rows}
    judged = [
        {
            **asdict(target),
            "mode": target.mode,
            "unit": "x dense",
            **_verdict(measured.get(target.about), target.over_dense),
        }
        for target in TARGETS
        if (target.layout, target.seq_len) in asked
    ]
    layout, seq_len, limit_mib = MEMORY_TARGET
    if (layout, seq_len) in asked:
        about = ("whole", layout, seq_len, "backward", EAGER)
        held = [row.extra_mib for row in rows if row.contestant == FUSED and row.about == about and row.counted_ms]
        about = {"part": "whole", "layout": layout, "seq_len": seq_len, "direction": "memory", "mode": EAGER}
        judged.append({**about, "unit": "MiB", **_verdict(held[0] if held else None, limit_mib)})
    return judged


def _verdict(measured: float | None, limit: float) -> dict:
    if measured is None:
        return {"limit": limit, "measured": None, "met": False, "missed_by_percent": None}
    missed = None if measured <= limit else 100 * (measured / limit - 1)
    return {"limit": limit, "measured": measured, "met": missed is None, "missed_by_percent": missed}


def tables(rows: Sequence[Row]) -> str:
    """Return the targets and all rows as two markdown tables, the directions of a contestant side by side."""
    targets = [
        {
            "layout": t["layout"],
            "S": f"{t['seq_len']:,}",
            "part": t["part"],
            "direction": t["direction"],
            "mode": t["mode"],
            "target": f"{t['limit']:,.4g} {t['unit']}",
            "measured": _number(t["measured"], ",.3g"),
            "met": _met(t),
        }
        for t in judged_targets(rows)
    ]
    lines: dict[tuple, dict[str, str]] = {}
    for row in with_ratios(rows):
        about = (row["layout"], row["seq_len"], row["part"], row["contestant"], row["mode"])
        named = zip(COLUMNS[:5], (about[0], f"{about[1]:,}", *about[2:]), strict=True)
        line = lines.setdefault(about, {**dict.fromkeys(COLUMNS, ""), **dict(named)})
        line |= {name: said for name, said in _cells(row).items() if said}
    return "\n\n".join(markdown(list(body)) for body in (targets, lines.values()) if body)


def compared(rows: Sequence[Row], before: Sequence[dict]) -> str:
    """Return a markdown table of each figure beside that of another run, `before`, given by its rows as dicts."""
    names = ("layout", "seq_len", "part", "contestant", "direction", "mode")
    earlier = {tuple(row[name] for name in names): row for row in before}
    lines = []
    for row in map(asdict, rows):
        old = earlier.get(tuple(row[name] for name in names))
        if old and not old["reason"] and old["median_ms"] and not row["reason"] and row["median_ms"]:
            figures = {"before ms": old["median_ms"], "now ms": row["median_ms"]}
            figures["now / before"] = row["median_ms"] / old["median_ms"]
            about = {"S" if name == "seq_len" else name: str(row[name]) for name in names}
            lines.append(about | {name: _number(value, ".4g") for name, value in figures.items()})
    return markdown(lines) if lines else "No figure is in both runs."


def _cells(row: dict) -> dict[str, str]:
    where = row["direction"]
    return {
        f"{where} {SPREAD}": _time(row),
        f"{where} / dense": _number(row["over_dense"], ".3g"),
        **{f"{where} / {name}": _number(row[f"over_{name}"], ".3g") for name in YARDSTICKS},
        f"{where} / floor": _number(row["over_floor"], ".3g"),
        "extra MiB": _number(row["extra_mib"], ",.0f"),
        "error": _number(row["error"], ".1e"),
        "why not": row["reason"],
    }


def _met(target: dict) -> str:
    if target["measured"] is None:
        return "not measured"
    return "yes" if target["met"] else f"missed by {target['missed_by_percent']:.0f} %"


def _time(row: dict) -> str:
    if row["median_ms"] is None:
        return ""
    return f"{row['median_ms']:.4g} ({row['low_ms']:.4g} to {row['high_ms']:.4g})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def markdown(body: list[dict[str, str]]) -> str:
    """Return a table of the columns that any line has something in."""
    head = [name for name in dict.fromkeys(n for line in body for n in line) if any(line.get(name) for line in body)]
    cells = [head, ["---"] * len(head)]
    cells += [[line.get(name, "").replace("|", "\\|") for name in head] for line in body]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
