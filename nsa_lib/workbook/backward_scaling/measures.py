"""How time and memory grow with the length and with the layers: figures and exponents of a backward scaling.

An exponent without its interval says little: four points with local exponents between 0.8 and 1.9 were once read as a
proof of O(S²).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log, sqrt
from statistics import median

import numpy as np
import pandas as pd

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.judgement.gate import ended_well
from nsa_lib.runs.recorded import Recorded, measured_once
from nsa_lib.workbook.backward_scaling.cases import TRAIN_LAYERS

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t, 97.5 %, for 1 to 10 degrees of freedom; beyond, the last one makes an interval a little too wide."""

Z_QUANTILE = 1.96

MEDIAN_OVER_MEAN = 1.2533
"""Standard error of a median over that of a mean, for normal noise: sqrt(pi / 2)."""


@measured_once
def length_rows(run: Recorded) -> pd.DataFrame:
    """Return a row for each length whose case left counted steps.

    Columns: seq_len, steps, forward_ms, backward_ms, total_ms (medians), spread_percent (interquartile range of the
    total over its median), tokens_per_s, peak_alloc_forward_mib, peak_alloc_backward_mib, peak_reserved_forward_mib,
    peak_reserved_backward_mib, peak_alloc_mib, peak_reserved_mib, state_mib (parameters and gradients), beyond_mib
    (peak allocated without them).
    """
    rows = []
    for length in run.parameter("seq_lens"):
        steps = run.of(f"s{length}")
        counted, case = steps[steps["phase"] == "step"], run.case(f"s{length}")
        if counted.empty:
            continue
        total = counted["forward_ms"] + counted["backward_ms"]
        low, high = total.quantile([0.25, 0.75])
        peaks = [f"peak_{what}_{phase}_mib" for what in ("alloc", "reserved") for phase in ("forward", "backward")]
        rows.append(
            {
                "seq_len": length,
                "steps": len(counted),
                **{name: counted[name].median() for name in ("forward_ms", "backward_ms")},
                "total_ms": total.median(),
                "spread_percent": 100 * (high - low) / total.median(),
                "tokens_per_s": 1000 * run.parameter("batch") * length / total.median(),
                **counted[[*peaks, "peak_alloc_mib", "peak_reserved_mib"]].max().to_dict(),
                "state_mib": float(case["state_mib"]),
                "beyond_mib": counted["peak_alloc_mib"].max() - float(case["state_mib"]),
            }
        )
    return pd.DataFrame(rows)


@measured_once
def exponent_rows(run: Recorded) -> pd.DataFrame:
    """Return the exponents b of y ~ S^b, a row for each segment and one over all lengths.

    Columns: quantity (`time`, `memory`), first, last (lengths), exponent, low, high (a 95 % interval).
    `memory` is the peak allocated without parameters and gradients.
    """
    lengths = length_rows(run)
    rows = []
    for quantity, column in (("time", "total_ms"), ("memory", "beyond_mib")):
        points = [(row.seq_len, getattr(row, column)) for row in lengths.itertuples() if getattr(row, column) > 0]
        errors = [_log_error(run, length) if quantity == "time" else 0.0 for length, _ in points]
        for (a, b), noise in zip(pairwise(points), pairwise(errors), strict=True):
            rows.append((quantity, a[0], b[0], *segment_exponent(a, b, *noise)))
        if len(points) > 2:
            rows.append((quantity, points[0][0], points[-1][0], *overall_exponent(points)))
    return pd.DataFrame(rows, columns=["quantity", "first", "last", "exponent", "low", "high"])


def _log_error(run: Recorded, length: int) -> float:
    """Return the standard error of the logarithm of a length's median time."""
    steps = run.of(f"s{length}")
    counted = steps[steps["phase"] == "step"]
    logs = np.log(counted["forward_ms"] + counted["backward_ms"])
    return MEDIAN_OVER_MEAN * logs.std(ddof=1) / sqrt(len(logs)) if len(logs) > 1 else float("inf")


def segment_exponent(
    first: tuple[float, float], last: tuple[float, float], first_error: float = 0.0, last_error: float = 0.0
) -> tuple[float, float, float]:
    """Return the exponent between two points (S, y) and its 95 % interval, from the errors of their logarithms."""
    span = log(last[0] / first[0])
    exponent = log(last[1] / first[1]) / span
    reach = Z_QUANTILE * sqrt(first_error**2 + last_error**2) / span
    return exponent, exponent - reach, exponent + reach


def overall_exponent(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the slope of log y on log S by least squares, and its 95 % interval by Student's t.

    Points that lie on no straight line make the interval wide, as they should. Raises ValueError for fewer than 3.
    """
    if len(points) < 3:
        raise ValueError(f"{len(points)} points: an interval needs 3")
    x, y = np.log(np.array(points, dtype=float)).T
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    residuals = y - y.mean() - slope * x
    freedom = len(points) - 2
    reach = T_QUANTILES[min(freedom, len(T_QUANTILES)) - 1] * sqrt(residuals @ residuals / freedom / (x @ x))
    return slope, slope - reach, slope + reach


PHASE_PEAKS = tuple(f"peak_alloc_{phase}_mib" for phase in ("forward", "backward", "optimizer"))


def layer_rows(run: Recorded) -> pd.DataFrame:
    """Return the peak allocated memory of the train steps with few layers, a row each.

    Columns: layers, peak_alloc_mib, and the peak of each phase, peak_alloc_<phase>_mib.
    """
    columns = ["peak_alloc_mib", *PHASE_PEAKS]
    rows = [
        {"layers": layers, **run.of(f"train_{layers}")[columns].max().to_dict()}
        for layers in TRAIN_LAYERS
        if ended_well(run.case(f"train_{layers}")) and not run.of(f"train_{layers}").empty
    ]
    return pd.DataFrame(rows, columns=["layers", *columns])


def predicted_peak_mib(rows: pd.DataFrame, layers: int) -> float | None:
    """Return the peak allocated memory of a deeper model from measured ones, or None for fewer than 2.

    In each phase memory is linear in the layers: every layer adds its parameters, optimizer state, checkpoint and, from
    backward on, gradients. Which phase is highest changes with the layers, so each has its own line.
    """
    if len(rows) < 2:
        return None
    lines = (np.polyfit(rows["layers"], rows[phase], 1) for phase in PHASE_PEAKS)
    return float(max(offset + slope * layers for slope, offset in lines))


def allocator_rows(run: Recorded) -> pd.DataFrame:
    """Return what each allocator setting costs, for the largest length and for the smoke's train step.

    Columns: work (`backward`, `smoke`), setting, alloc_conf, status, peak_alloc_mib, peak_reserved_mib, ratio.
    """
    rows = []
    for work in ("backward", "smoke"):
        for name, setting in ALLOCATOR_SETTINGS.items():
            case_id = f"{work}_{name}"
            if work == "backward" and setting == run.parameter("alloc_conf"):
                case_id = f"s{run.parameter('seq_lens')[-1]}"
            case = run.case(case_id)
            if case is None:
                continue
            allocated, reserved = run.of(case_id)[["peak_alloc_mib", "peak_reserved_mib"]].max()
            figures = {"peak_alloc_mib": allocated, "peak_reserved_mib": reserved, "ratio": reserved / allocated}
            named = {"work": work, "setting": name, "alloc_conf": setting or "the default", "status": case["status"]}
            rows.append({**named, **figures})
    return pd.DataFrame(rows)


def slow_lengths(run: Recorded, slow_ms: float) -> list[tuple[int, float]]:
    """Return the lengths (S, median ms) whose iterations take longer than `slow_ms`."""
    rows = []
    for length in run.parameter("seq_lens"):
        steps = run.of(f"s{length}")["step_ms"].dropna().tolist()
        if steps and median(steps) > slow_ms:
            rows.append((length, median(steps)))
    return rows
