"""Is the selection worth anything? What was found of each layer in the first and the last step, and what to say of it.

It is shown and never judged: a healthy attention may be trained on tokens that give it nothing to select.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from nsa_lib.contract.figures import counted
from nsa_lib.runs.recorded import Recorded

SHARES = ("overlap", "forced", "in_window", "near_ties", "never_picked")
"""What is known of a layer's selection, as shares (`worker.selection_health`)."""

COLUMNS = ("step", "layer", "choosing", *SHARES, "gate", "heads", "stuck", "by_union", "adds_nothing")

SELECTED = "slc"


def selection_rows(run: Recorded, case_id: str = "training") -> pd.DataFrame:
    """Return what was found of each layer, a row for each of the COLUMNS' steps and layers; none if nothing was.

    `gate` is the mean gate of the selected branch. `stuck` is a list of branch, heads and the value, 0 or 1, at which
    their gates are stuck. `by_union` is the share of the tiles of queries whose dq was made over the union of their
    blocks, where kernels decide so. `adds_nothing` says why selection gives nothing that the window does not, or is
    empty.
    """
    rows = [_row(step, layer, health) for step, layer, health in _found(run, case_id)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _found(run: Recorded, case_id: str) -> Iterator[tuple[int, int, dict]]:
    """Yield step, layer from 1, and what was found: in recorded steps, or else when the case had ended."""
    steps = run.fact(case_id, "attestation") or ()
    recorded = [
        (step["step"], layer["layer"] + 1, layer["health"])
        for step in steps
        for layer in step.get("layers", ())
        if layer.get("health")
    ]
    if recorded:
        yield from recorded
        return
    looked = (run.fact(case_id, "attention_map") or {}).get("health", ())
    steps = run.of(case_id)["step"]
    for layer, health in enumerate(looked, start=1):
        yield int(steps.max()) if len(steps) else 0, layer, health


def _row(step: int, layer: int, health: dict) -> dict[str, object]:
    stuck = [(branch, heads, 0) for branch, heads in health["shut"].items() if heads]
    stuck += [(branch, heads, 1) for branch, heads in health["wide_open"].items() if heads]
    return {
        "step": step,
        "layer": layer,
        "choosing": health["choosing"],
        **{share: health[share] for share in SHARES},
        "gate": health["gates"].get(SELECTED),
        "heads": health["heads"],
        "stuck": stuck,
        "by_union": health.get("by_union"),
        "adds_nothing": _why_nothing(health),
    }


def _why_nothing(health: dict) -> str:
    if health["heads"] and health["shut"].get(SELECTED) == health["heads"]:
        return "its gate is shut in every head"
    if not health["choosing"]:
        return "every query reads all blocks that there are"
    if health["in_window"] is None:
        return "every block is forced"
    return "all blocks picked lie in the window" if health["in_window"] == 1 else ""


def selection_advice(run: Recorded, case_id: str = "training") -> list[str]:
    """Return a sentence for each reason why selection adds nothing to the window in the last step."""
    rows = selection_rows(run, case_id)
    last = rows[rows["step"] == rows["step"].max()]
    return [
        f"Selection adds nothing to the sliding window in {_layers(layers.tolist(), len(last))}: {why}."
        for why, layers in last[last["adds_nothing"] != ""].groupby("adds_nothing", sort=False)["layer"]
    ]


def _layers(layers: list[int], shown: int) -> str:
    if len(layers) == shown > 1:
        return f"all {counted(shown, 'layer')} that were looked at"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
