"""What a backend contrast measured, as frames: speed, memory, errors, operators, crossing points.

Nothing is judged here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from nsa_lib.contract.agenda import DENSE
from nsa_lib.contract.case import WINDOW_STEPS
from nsa_lib.contract.figures import largest, short
from nsa_lib.runs.recorded import Recorded, measured_once
from nsa_lib.subject.config import OWN

OPERATOR = re.compile(r"\w+::[\w.]+")
"""The name of a dispatched operator; kernels and named ranges, which a profile holds too, look different."""

TIMED = ["subject", "branches", "backend", "seq_len"]

WHOLE = {"layer": "a layer", "model": "the model"}
"""What is timed whole, in words."""


def contested(run: Recorded) -> tuple[str, ...]:
    """Return what is compared: every backend of the run, and the yardstick."""
    return (*run.backends, DENSE)


def on_trial(run: Recorded) -> str | None:
    """Return the contestant that was asked for by name: what a user brings, or dense attention; None for ours."""
    if run.info.get("on_trial"):
        return OWN
    asked = run.was_given("attention") and run.parameter("attention")
    return DENSE if asked == DENSE else None


def stands_alone(run: Recorded) -> bool:
    """Return whether what is on trial is another attention than ours: none of our backends computes it."""
    return on_trial(run) is not None and (run.info.get("on_trial") or {}).get("role") != "backend"


@measured_once
def all_turns(run: Recorded) -> pd.DataFrame:
    """Return the turns of a timing, those of the warm-up too."""
    return run.of("timing")


@measured_once
def timed_turns(run: Recorded) -> pd.DataFrame:
    """Return the counted turns of a timing, with total_ms and between_ms: from the heartbeat before to its own."""
    turns = all_turns(run)
    turns = turns.assign(total_ms=turns["forward_ms"] + turns["backward_ms"], between_ms=1000 * turns["ts"].diff())
    return turns[turns["phase"] == "step"].dropna(subset=["forward_ms", "backward_ms"])


@measured_once
def timing_rows(run: Recorded) -> pd.DataFrame:
    """Return a row for each contestant that has a counted round, in the order of their turns.

    Columns: subject, branches, backend, seq_len, called, rounds, forward_ms, backward_ms, total_ms (medians), the
    quartiles <phase>_low_ms and <phase>_high_ms of each, spread_percent (interquartile range of the total over its
    median).
    """
    rows = []
    for key, turns in timed_turns(run).groupby(TIMED, sort=False):
        row = dict(zip(TIMED, key, strict=True)) | {"seq_len": int(key[-1]), "rounds": len(turns)}
        row["called"] = run.called(row["backend"])
        for phase in ("forward", "backward", "total"):
            low, median, high = turns[f"{phase}_ms"].quantile([0.25, 0.5, 0.75])
            row |= {f"{phase}_ms": median, f"{phase}_low_ms": low, f"{phase}_high_ms": high}
        row["spread_percent"] = 100 * (row["total_high_ms"] - row["total_low_ms"]) / row["total_ms"]
        rows.append(row)
    figures = [f"{phase}{end}_ms" for phase in ("forward", "backward", "total") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*TIMED, "called", "rounds", *figures, "spread_percent"])


@measured_once
def contrast_rows(run: Recorded) -> pd.DataFrame:
    """Return a row for each backend and for dense attention, with what is known of its whole model.

    Columns: backend, called, forward_ms, backward_ms, total_ms, spread_percent, ratio_to_dense, peak_alloc_mib,
    peak_reserved_mib, operators_per_step, output_error, gradient_error, route. The errors are the worst of both
    comparisons, of the whole layer and of the selected branch.
    """
    timed = timing_rows(run)
    at_length = timed["seq_len"] == run.parameter("seq_len")  # a user's model was timed at others too
    models = timed[(timed["subject"] == "model") & at_length].set_index("backend")
    columns = ["forward_ms", "backward_ms", "total_ms", "spread_percent"]
    rows = [
        {
            "backend": name,
            "called": run.called(name),
            **(models.loc[name, columns].to_dict() if name in models.index else {}),
            **_memory(run, name),
            "operators_per_step": sum(early_counts(run, name).values()) / WINDOW_STEPS or None,
            **_errors(run, name),
            "route": _routes(run, name),
        }
        for name in contested(run)
    ]
    order = ["backend", "called", *columns, "peak_alloc_mib", "peak_reserved_mib", "operators_per_step", "output_error",
             "gradient_error", "route"]  # fmt: skip
    found = pd.DataFrame(rows, columns=order)
    numbers = found.columns.drop(["backend", "called", "route"])
    found[numbers] = found[numbers].astype(float)
    dense_ms = found.loc[found["backend"] == DENSE, "total_ms"].item()
    found.insert(order.index("spread_percent") + 1, "ratio_to_dense", found["total_ms"] / dense_ms)
    return found


def _memory(run: Recorded, backend: str) -> dict[str, float]:
    return run.of(f"model_{backend}")[["peak_alloc_mib", "peak_reserved_mib"]].astype(float).max().to_dict()


def _routes(run: Recorded, backend: str) -> str | None:
    """Return what the layers entered in recorded steps, as the gate of the route sees it; None where none named one."""
    steps = run.fact(f"model_{backend}", "executed") or ()
    entered = {run.called(route) for step in steps for layer in step["routes"] for route in layer}
    return ", ".join(sorted(entered)) or None


def _errors(run: Recorded, backend: str) -> dict[str, float]:
    found = [run.fact(f"model_{backend}", field) or {} for field in ("attention_error", "selected_error")]
    outputs = [errors["output"] for errors in found if "output" in errors]
    gradients = [error for errors in found for name, error in errors.items() if name != "output"]
    return {"output_error": largest(outputs), "gradient_error": largest(gradients)}


def early_counts(run: Recorded, backend: str) -> dict[str, int]:
    """Return the calls of each dispatched operator in the early window of a backend's training, {} if not counted."""
    return {name: int(row["count"]) for name, row in _early_operators(run, backend).items()}


def _early_operators(run: Recorded, backend: str) -> Mapping[str, Mapping[str, float]]:
    windows = run.fact(f"model_{backend}", "operators") or {"early": {}}
    return {name: row for name, row in windows["early"].items() if OPERATOR.fullmatch(name)}


RANKED_BY = {"time": ("ms", "ms"), "memory": ("mib", "MiB"), "calls": ("calls", "calls")}
"""By what operators are ranked: the column, and its unit."""


def top_operators(run: Recorded, backend: str, by: str, count: int = 10) -> pd.DataFrame:
    """Return the operators of a backend's training that need most, a row each: operator, calls, ms, mib, a step each.

    Args:
        run: the contrast.
        backend: its backend, or `dense`.
        by: `time` on the device, `memory` that is still held when each call returns (most is freed later in the
            step, so the sum may exceed a GPU's), or `calls`; on a CPU only calls
            are counted.
        count: how many rows.
    """
    rows = [
        {
            "operator": name,
            "calls": row["count"] / WINDOW_STEPS,
            "ms": row.get("self_device_ms", float("nan")) / WINDOW_STEPS,
            "mib": row.get("self_device_mib", float("nan")) / WINDOW_STEPS,
        }
        for name, row in _early_operators(run, backend).items()
    ]
    column, _ = RANKED_BY[by]
    found = pd.DataFrame(rows, columns=["operator", "calls", "ms", "mib"]).dropna(subset=[column])
    return found.sort_values([column, "operator"], ascending=[False, True]).head(count).reset_index(drop=True)


def top_rows(run: Recorded) -> pd.DataFrame:
    """Return the top operators of all backends side by side, most first: by time and memory, on a CPU by calls.

    Columns: by, and one for each backend with texts such as `mm 12.34 ms`.
    """
    ranks = ("time", "memory") if run.parameter("device") == "cuda" else ("calls",)
    names = contested(run)
    parts = [pd.DataFrame({run.called(name): _said(run, name, by) for name in names}).assign(by=by) for by in ranks]
    return pd.concat(parts, ignore_index=True).fillna("")[["by", *(run.called(name) for name in names)]]


def _said(run: Recorded, backend: str, by: str) -> pd.Series:
    column, unit = RANKED_BY[by]
    top = top_operators(run, backend, by)
    names = top["operator"].str.removeprefix("aten::")
    said = [f"{name} {short(value, 3)}\N{NO-BREAK SPACE}{unit}" for name, value in zip(names, top[column], strict=True)]
    return pd.Series(said, dtype=object)


def swept(timed: pd.DataFrame) -> str:
    """Return what was timed at several lengths, `layer` or `model`: a user's model has no layer that stands alone."""
    lengths = timed.groupby("subject")["seq_len"].nunique()
    return "model" if lengths.get("model", 0) > lengths.get("layer", 0) else "layer"


def whole_of(timed: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a timing that the sweep is about: NSA with all its branches, dense, and what is a user's."""
    return timed[(timed["subject"] == swept(timed)) & timed["branches"].isin(["all", DENSE])]


def first_faster(run: Recorded) -> dict[str, int | None]:
    """Return, for each backend measured, the length from which it is faster than dense attention, or None.

    From that length on it is faster at every longer one that was measured. What a user brings stands under its label.
    """
    table = whole_of(timing_rows(run)).pivot(index="seq_len", columns="backend", values="total_ms").sort_index()
    if DENSE not in table:
        return {}
    found: dict[str, int | None] = {}
    for backend in run.backends:
        if backend not in table:
            continue
        pair = table[[backend, DENSE]].dropna()
        faster = (pair[backend] < pair[DENSE])[::-1].cummin()[::-1]
        found[run.called(backend)] = int(faster.idxmax()) if faster.any() else None
    return found
