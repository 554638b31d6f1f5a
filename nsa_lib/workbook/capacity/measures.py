"""The sweep: memory predicted at every length, batch and depth, in every variant and under every allocator setting.

Predicted on any machine, with no device and no run; so it clears nothing and is no part of a readiness.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.runs.plan import Plan
from nsa_lib.runs.predictor import Predictor
from nsa_lib.runs.progress import Progress
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.capacity.cases import AS_ASKED, Point, sweep_points
from nsa_lib.workbook.capacity.ranges import with_ranges

CHECKLIST_RESERVED_MIB = 70_000

PROCESSES = 2

PATIENCE_S = 600.0
"""How long a single prediction may take."""

SETTINGS = {f"allocator {conf or '(none)'}": name for name, conf in ALLOCATOR_SETTINGS.items()}
"""The variants of a sweep that change the allocator setting alone, and the name of each setting."""


def limit_mib(plan: Plan) -> float:
    """Return what may be reserved: the checklist's limit, or the device's memory where that is less."""
    return min(CHECKLIST_RESERVED_MIB, 1024 * float(plan["device_gib"]))


def sweep(plan: Plan) -> pd.DataFrame:
    """Predict every case of a plan and return a row for each point of the sweep, in every variant.

    Nothing is extrapolated: each row is the prediction of its own length, batch and depth.

    Columns: axis and variant (as in `Point`, or a key of SETTINGS), seq_len, batch, layers, peak_alloc_mib, phase (of
    that peak), terms (what it consists of, MiB by name), peak_reserved_mib, and `ranges.with_ranges`'s.

    Raises ConfigError with the reason if a case cannot be predicted.
    """
    found = _predictions(plan)
    points = sweep_points(plan.values)
    rows = [_row(point, point.variant, found[point.case.case_id]) for point in points]
    for variant, setting in SETTINGS.items():
        under = {case_id: {**prediction, **prediction["settings"][setting]} for case_id, prediction in found.items()}
        rows += [_row(point, variant, under[point.case.case_id]) for point in points if point.variant == AS_ASKED]
    return with_ranges(pd.DataFrame(rows))


def _row(point: Point, variant: str, prediction: Mapping) -> dict[str, object]:
    terms = prediction["terms"]
    highest = max(terms, key=lambda phase: sum(terms[phase].values()))
    case = point.case
    return {
        "axis": point.axis, "variant": variant, "seq_len": case.seq_len, "batch": case.batch,
        "layers": case.model.layers, "peak_alloc_mib": prediction["peak_alloc_mib"], "phase": highest,
        "terms": terms[highest], "peak_reserved_mib": prediction["peak_reserved_mib"],
    }  # fmt: skip


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
                each=True,
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
