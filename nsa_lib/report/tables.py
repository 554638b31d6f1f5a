"""Tables of a run, as HTML for a notebook and as text for a prompt.

Numbers carry thousands separators and units, an outcome is an icon and a word (never colour alone), and every text is
escaped. Nothing is judged here.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

OUTCOMES = {"FAIL": ("✘", "error"), "NOT_RUN": ("○", "warn"), "WARN": ("▲", "warn"), "PASS": ("✔", "success")}
"""Icon and JupyterLab colour of a gate's outcome, worst first."""


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and how it stands out."""

    text: str
    numeric: bool = False
    """Set flush right."""
    colour: str = ""
    """JupyterLab's name of a colour, `error`, `warn` or `success`; also sets bold type."""
    folded: str = ""
    """Lines of output, shown as they are when a reader opens them."""


@dataclass(frozen=True)
class Table:
    """A captioned table that shows itself in a notebook and at a prompt."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def _repr_html_(self) -> str:
        numeric = [cell.numeric for cell in self.rows[0]] if self.rows else [False] * len(self.header)
        head = "".join(
            f'<th scope="col" style="text-align:{"right" if flush_right else "left"}">{escape(name)}</th>'
            for name, flush_right in zip(self.header, numeric)
        )
        body = "".join(f"<tr>{''.join(map(_cell_html, row))}</tr>" for row in self.rows)
        caption = f'<caption style="text-align:left">{escape(self.caption)}</caption>'
        return f'<table class="nsa-table">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'

    def __repr__(self) -> str:
        lines = [list(self.header), *([cell.text for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        texts = ("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)
        return "\n".join([self.caption, *texts])


def gates_table(gates: Iterable[Mapping]) -> Table:
    """Tabulate gate results, those that decide against a run first and those that are not required last."""
    order = list(OUTCOMES)
    ranked = sorted(gates, key=lambda gate: (not gate["required"], order.index(gate["outcome"])))
    header = ("outcome", "gate", "measured", "limit", "margin", "detail")
    return Table("Gates", header, [_gate_row(gate) for gate in ranked])


def parameters_table(parameters: Iterable[Mapping]) -> Table:
    """Tabulate effective parameters: `name`, `value`, `origin`, `checklist` and whether it `differs` from that."""
    rows = [
        (
            Cell(parameter["name"]),
            Cell(format_value(parameter["value"]), colour="warn" if parameter["differs"] else ""),
            Cell(parameter["origin"]),
            Cell(format_value(parameter["checklist"])),
            Cell("▲ differs" if parameter["differs"] else "", colour="warn" if parameter["differs"] else ""),
        )
        for parameter in parameters
    ]
    return Table("Effective parameters", ("parameter", "value", "origin", "checklist", ""), rows)


def environment_table(environment: Mapping) -> Table:
    """Tabulate the facts of a machine; a nested fact is named by its path, `gpu.name`."""
    return Table("Environment", ("fact", "value"), [(Cell(k), Cell(format_value(v))) for k, v in _flatten(environment)])


def cases_table(cases: pd.DataFrame) -> Table:
    """Tabulate the cases of a run: `case_id`, `status`, `reason`, `steps_done`, `seconds`, and what one wrote last.

    The end of its stderr, with the stacks of a hang, is folded below the reason.
    """
    rows = [
        (
            Cell(case["case_id"]),
            Cell(
                f"✔ {case['status']}" if case["status"] == "ok" else f"✘ {case['status']}",
                colour="success" if case["status"] == "ok" else "error",
            ),
            Cell(format_value(case["steps_done"]), numeric=True),
            Cell(format_value(case["seconds"], "s"), numeric=True),
            Cell(format_value(case["reason"]), folded=str(case.get("stderr_tail") or "").strip()),
        )
        for case in cases.to_dict("records")
    ]
    return Table("Cases", ("case", "status", "steps", "time", "reason"), rows)


def advice_table(advice: Iterable[str]) -> Table:
    """Tabulate what a user may want to change; it decides nothing."""
    return Table("Advice, which decides nothing", ("advice",), [(Cell(text),) for text in advice] or [(Cell("none"),)])


def frame_table(caption: str, frame: pd.DataFrame, columns: Mapping[str, str]) -> Table:
    """Tabulate columns of a frame under headings of their own, `{column: heading}`; units belong in the headings."""
    rows = [
        [Cell(format_value(row[column]), numeric=pd.api.types.is_numeric_dtype(frame[column])) for column in columns]
        for row in frame.to_dict("records")
    ]
    return Table(caption, list(columns.values()), rows)


def lengths_table(lengths: pd.DataFrame) -> Table:
    """Tabulate the lengths of a backward scaling (`scaling.length_rows`)."""
    columns = {
        "seq_len": "S, tokens", "forward_ms": "forward, ms", "backward_ms": "backward, ms", "total_ms": "both, ms",
        "spread_percent": "spread, %", "tokens_per_s": "tokens/s",
        "peak_alloc_forward_mib": "peak allocated forward, MiB",
        "peak_alloc_backward_mib": "peak allocated backward, MiB",
        "peak_reserved_forward_mib": "peak reserved forward, MiB",
        "peak_reserved_backward_mib": "peak reserved backward, MiB",
    }  # fmt: skip
    return frame_table("Medians of the counted iterations; spread is the interquartile range", lengths, columns)


def exponents_table(exponents: pd.DataFrame) -> Table:
    """Tabulate fitted exponents with their intervals (`scaling.exponent_rows`)."""
    columns = {
        "quantity": "quantity", "first": "from S", "last": "to S", "exponent": "exponent", "low": "95 % from",
        "high": "95 % to",
    }  # fmt: skip
    caption = "Exponents b of y ~ S^b; memory is the peak allocated without parameters and gradients"
    return frame_table(caption, exponents, columns)


def allocator_table(settings: pd.DataFrame) -> Table:
    """Tabulate what each allocator setting costs (`scaling.allocator_rows`)."""
    columns = {
        "work": "work", "setting": "setting", "alloc_conf": "alloc_conf", "status": "status",
        "peak_alloc_mib": "peak allocated, MiB", "peak_reserved_mib": "peak reserved, MiB",
        "ratio": "reserved over allocated",
    }  # fmt: skip
    return frame_table("Allocator settings", settings, columns)


def format_value(value: object, unit: str = "") -> str:
    """Format a value for reading: thousands separators, four significant digits, the unit; absent is "–"."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        text = str(value)
    elif math.isfinite(value) and (abs(value) >= 1000 or value == int(value)):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return f"{text} {unit}".rstrip()


def _gate_row(gate: Mapping) -> tuple[Cell, ...]:
    icon, colour = OUTCOMES[gate["outcome"]]
    outcome = f"{icon} {gate['outcome'].replace('_', ' ')}"
    return (
        Cell(outcome if gate["required"] else f"{outcome}, not required", colour=colour if gate["required"] else ""),
        Cell(gate["name"]),
        Cell(format_value(gate["measured"], gate["unit"] or ""), numeric=True),
        Cell(format_value(gate["limit"], gate["unit"] or ""), numeric=True),
        Cell(_percentage(gate["margin"], gate["limit"]), numeric=True),
        Cell(gate["detail"]),
    )


def _percentage(margin: object, limit: object) -> str:
    """Return a margin as a signed percentage of its limit, or "–" where there is nothing to divide by."""
    finite = all(isinstance(value, numbers.Real) and math.isfinite(value) for value in (margin, limit))
    return f"{100 * margin / abs(limit):+.1f} %" if finite and limit else "–"


def _cell_html(cell: Cell) -> str:
    style = "text-align:right;white-space:nowrap" if cell.numeric else "text-align:left"
    if cell.colour:
        style += f";white-space:nowrap;font-weight:600;color:var(--jp-{cell.colour}-color0)"
    # A setting such as a:1,b:2 may break at its commas, a number may not.
    text = re.sub(r",(?=[^\W\d])", ",<wbr>", escape(cell.text))
    if cell.folded:
        text += f"<details><summary>stderr</summary><pre>{escape(cell.folded)}</pre></details>"
    return f'<td style="{style}">{text}</td>'


def _flatten(facts: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
