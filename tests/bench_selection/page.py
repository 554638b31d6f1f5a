"""What a run of `tests.bench_selection` found, as a page of markdown."""

from __future__ import annotations

HOW_TO_READ = """\
Of queries that have more blocks before them than they read, on {sequences} sequences held out. *overlap*: share of the
blocks picked by score that the query before read too. *forced*: share of what is read whatever the scores. *in_window*:
share of the picked blocks that the sliding window sees anyhow. *never_picked*: share of the blocks that no query picks.
*union_n*: blocks that a tile of n neighbouring queries reads together. *entropy*: over that of equal shares, of how
often each block is picked, and of a row's scores. *near_ties*: share of rows whose last score in and first one out
differ by less than 1 / 256. *gate*: the mean of a branch's gates."""

CURVE_POINTS = 10
"""Of the loss, in the text; the JSON has more."""


def page(found: dict) -> str:
    """Return the figures as markdown: where they are from, the loss, and a row a layer."""
    training, facts, captured = (found[name] for name in ("training", "environment", "captured"))
    case, text, curve = training["case"], training["text"], training["curve"]
    shown = [*curve[:: -(-len(curve) // CURVE_POINTS)], curve[-1]]
    columns = found["layers"][0]
    lines = [["layer", *columns], ["---"] * (1 + len(columns))]
    lines += [[str(i), *map(_cell, layer.values())] for i, layer in enumerate(found["layers"], start=1)]
    return "\n".join(
        [
            f"# What {len(found['layers'])} layers select after {training['seconds']:,.0f} s of training on text",
            "",
            f"{facts.get('gpu') or facts['cpu']}, torch {facts['torch']}, {found['finished']}: `{found['command']}`.",
            f"{training['steps']:,} steps of one sequence of S = {case['seq_len']:,} bytes, {case['dtype']}, of",
            f"{text['bytes'] / 1e6:,.1f} MB in {text['files']:,} files. Loss in nats a byte, by step:",
            ", ".join(f"{step:,}: {loss:.2f}" for step, loss in shown) + ".",
            "",
            HOW_TO_READ.format(sequences=found["sequences"]),
            "",
            f"Kept is the selection of layer {captured['layer']}, {captured['groups']} groups, of the first sequence.",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
        ]
    )


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
