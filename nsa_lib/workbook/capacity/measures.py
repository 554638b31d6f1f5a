"""What fits: the memory of a model predicted over lengths, batches and layers, and the largest of each within a limit.

Predicted on any machine, with no device and no run; so it clears nothing and is no part of a readiness.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs.plan import Plan
from nsa_lib.runs.predictor import Predictor
from nsa_lib.runs.progress import Progress
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import LOSS_CHUNK, ConfigError
from nsa_lib.workbook.capacity.cases import DEPTHS

CHECKLIST_RESERVED_MIB = 70_000

PROCESSES = 2

PATIENCE_S = 600.0

MOST_LAYERS = 1024
"""Layers up to which the depth is drawn."""

RESERVED_BY_SETTING = {f"reserved_{name}_mib": conf for name, conf in ALLOCATOR_SETTINGS.items()}
"""Columns of a sweep and the allocator settings that they are for."""


def limit_mib(plan: Plan) -> float:
    """Return what may be reserved: the checklist's limit, or the device's memory where that is less."""
    return min(CHECKLIST_RESERVED_MIB, 1024 * float(plan["device_gib"]))


def sweep(plan: Plan) -> pd.DataFrame:
    """Predict every case of a plan and return a row for each length, batch, variant and depth.

    At lengths, batches and variants the depth is the plan's; the other depths are those of its own length and batch.

    Columns: axis (`seq_len`, `batch`, `layers`), variant (`as asked`, `checkpointing on`, `checkpointing off`, `loss in
    one piece`), seq_len, batch, layers, peak_alloc_mib, phase (of that peak), terms (what it consists of, MiB by name),
    peak_reserved_mib (under the plan's allocator setting) and reserved_<setting>_mib.

    Raises ConfigError with the reason if a case cannot be predicted.
    """
    found, asked = _predictions(plan), int(plan["layers"])
    rows = []
    for shallow, deep in zip(plan.cases[:: len(DEPTHS)], plan.cases[1 :: len(DEPTHS)]):
        pair = found[shallow.case_id], found[deep.case_id]
        variant = _variant(plan, shallow)
        is_base = shallow.seq_len == plan["seq_len"] and shallow.batch == plan["batch"]
        axes = ["batch"] if shallow.batch != plan["batch"] else ["seq_len"]
        axes += ["batch"] if is_base and variant == "as asked" else []
        rows += [_row(axis, variant, shallow, pair, asked) for axis in axes]
        if is_base:
            rows += [_row("layers", variant, shallow, pair, depth) for depth in _depths(asked)]
    return pd.DataFrame(rows)


def _depths(asked: int) -> list[int]:
    doubled = [2**power for power in range(MOST_LAYERS.bit_length()) if 2**power <= MOST_LAYERS]
    return sorted({*doubled, asked})


def _variant(plan: Plan, case: CaseConfig) -> str:
    if case.grad_checkpointing != plan["grad_checkpointing"]:
        return f"checkpointing {'on' if case.grad_checkpointing else 'off'}"
    return "as asked" if case.loss_chunk == LOSS_CHUNK else "loss in one piece"


def _row(axis: str, variant: str, case: CaseConfig, pair: tuple[Mapping, Mapping], layers: int) -> dict[str, object]:
    """Return the figures at a depth: in each phase memory is linear in the layers, and so is what is reserved."""
    terms = {
        phase: {name: _line(*(found["terms"][phase][name] for found in pair), layers) for name in first}
        for phase, first in pair[0]["terms"].items()
    }
    highest = max(terms, key=lambda phase: sum(terms[phase].values()))
    by_setting = {
        f"reserved_{name}_mib": _line(*(found["settings"][name]["peak_reserved_mib"] for found in pair), layers)
        for name in ALLOCATOR_SETTINGS
    }
    return {
        "axis": axis, "variant": variant, "seq_len": case.seq_len, "batch": case.batch, "layers": layers,
        "peak_alloc_mib": sum(terms[highest].values()), "phase": highest, "terms": terms[highest],
        "peak_reserved_mib": _line(*(found["peak_reserved_mib"] for found in pair), layers), **by_setting,
    }  # fmt: skip


def _line(shallow: float, deep: float, layers: int) -> float:
    first, last = DEPTHS
    return max(0.0, shallow + (deep - shallow) / (last - first) * (layers - first))


def _predictions(plan: Plan) -> dict[str, dict]:
    case_ids = [case.case_id for case in plan.cases]
    progress, began = Progress({"predictions": len(case_ids)}), time.monotonic()
    with tempfile.TemporaryDirectory() as made, StopButton() as stop:
        folders = {case_id: Path(made) / "cases" / case_id for case_id in case_ids}
        for case in plan.cases:
            folders[case.case_id].mkdir(parents=True)
            (folders[case.case_id] / "case.json").write_text(case.to_json())
        predictor = Predictor(Path(made), case_ids, plan.environment, processes=PROCESSES)
        try:
            predictor.wait(
                PATIENCE_S,
                stopped=lambda: stop.pressed,
                watch=lambda done: progress.show("predictions", done, None, (), phase="start"),
            )
            progress.end("predictions", f"{predictor.done} made", "", time.monotonic() - began)
        finally:
            predictor.end()
        found = {case_id: json.loads((path / "prediction.json").read_text()) for case_id, path in folders.items()}
    for case_id, prediction in found.items():
        if "reason" in prediction:
            raise ConfigError(f"{case_id}: no prediction: {prediction['reason']}")
    return found


AXES = {"seq_len": "S, tokens", "batch": "batch", "layers": "layers"}
"""What is swept, and how it is called."""


def largest(points: pd.DataFrame, axis: str, limit_mib: float, figure: str = "peak_reserved_mib") -> tuple[int, bool]:
    """Return the largest value of an axis whose figure stays within a limit, and whether the sweep ends there.

    Between two points memory is taken to be a straight line in logarithms. That lies above a sum of powers, so that the
    answer is a little small; where an allocator setting makes a step, it is as coarse as the sweep. 0 if not even the
    first point fits.
    """
    points = points.sort_values(axis)
    sizes, mib = points[axis].tolist(), points[figure].tolist()
    fitting = [size for size, needs in zip(sizes, mib) if needs <= limit_mib]
    if len(fitting) == len(sizes):
        return sizes[-1], True
    if not fitting or mib[0] > limit_mib:
        return 0, False
    at = next(place for place, needs in enumerate(mib) if needs > limit_mib)
    share = math.log(limit_mib / mib[at - 1]) / math.log(mib[at] / mib[at - 1])
    return int(sizes[at - 1] * (sizes[at] / sizes[at - 1]) ** share), False


def fits_rows(rows: pd.DataFrame, limit_mib: float) -> pd.DataFrame:
    """Return the largest S, batch and layers that fit, each with the other two as asked, and what memory is then.

    Columns: axis and fits, in words; at (the largest point of the sweep that fits, or else its first); phase (of the
    peak there); dominated_by (the largest terms there).
    """
    found = []
    for axis, words in AXES.items():
        points = rows[(rows["axis"] == axis) & (rows["variant"] == "as asked")].sort_values(axis)
        inside = points[points["peak_reserved_mib"] <= limit_mib]
        last = (points if inside.empty else inside).iloc[-1]
        ranked = sorted(last["terms"].items(), key=lambda term: -term[1])[:3]
        found.append(
            {
                "axis": words,
                "fits": _said(*largest(points, axis, limit_mib)),
                "at": f"{last[axis]:,}",
                "dominated_by": ", ".join(f"{name} {mib / last['peak_alloc_mib']:.0%}" for name, mib in ranked),
                "phase": last["phase"],
            }
        )
    return pd.DataFrame(found)


def _said(size: int, open_ended: bool) -> str:
    return f"at least {size:,}" if open_ended else f"{size:,}" if size else "nothing of the sweep"


def changes_rows(rows: pd.DataFrame, plan: Plan, limit_mib: float) -> pd.DataFrame:
    """Return what checkpointing, the loss in chunks and the allocator setting change, a row each, as asked first.

    Columns: change, peak_alloc_mib and peak_reserved_mib as asked otherwise, seq_len and layers (the largest that fit).
    """
    found = []
    own = rows[rows["variant"] == "as asked"]
    for variant in rows["variant"].unique():
        found.append(_change(rows[rows["variant"] == variant], plan, limit_mib, variant, "peak_reserved_mib"))
    for column, conf in RESERVED_BY_SETTING.items():
        found.append(_change(own, plan, limit_mib, f"allocator {conf or '(none)'}", column))
    return pd.DataFrame(found)


def _change(rows: pd.DataFrame, plan: Plan, limit_mib: float, change: str, figure: str) -> dict[str, object]:
    lengths, depths = (rows[rows["axis"] == axis] for axis in ("seq_len", "layers"))
    asked = depths[depths["layers"] == plan["layers"]].iloc[0]
    return {
        "change": change,
        "peak_alloc_mib": asked["peak_alloc_mib"],
        "peak_reserved_mib": asked[figure],
        "seq_len": _said(*largest(lengths, "seq_len", limit_mib, figure)),
        "layers": _said(*largest(depths, "layers", limit_mib, figure)),
    }
