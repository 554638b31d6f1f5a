"""Predicted beside measured memory, a row a phase; and what a difference points at.

A prediction is advice: nothing here is read by a gate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from nsa_lib.contract.figures import short
from nsa_lib.runs.recorded import Recorded

DIFFERENCE_PERCENT = 10.0
"""Difference between measured and predicted memory from which advice is given."""

SETTLED_STEPS = 2
"""Steps after which a case has reached its peaks: the first makes the optimizer's state."""

PHASES = ("forward", "backward", "optimizer")

RESERVED = "reserved"

COLUMNS = ("case_id", "phase", "predicted_mib", "measured_mib", "difference_percent", "terms", "reason")


def prediction_rows(run: Recorded, case_ids: Sequence[str]) -> pd.DataFrame:
    """Return predicted beside measured peaks of some cases, a row for each phase and one for reserved memory.

    Columns: case_id; phase (`forward`, `backward`, `optimizer`: peak allocated; `reserved`: peak reserved);
    predicted_mib, measured_mib; difference_percent (of measured from predicted); terms (what the predicted peak
    consists of, MiB by name, largest first); reason (why there is no prediction, else empty).
    """
    rows = [row for case_id in case_ids for row in _case_rows(run, case_id)]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["predicted_mib", "measured_mib", "difference_percent"]
    return frame.astype(dict.fromkeys(numbers, float))  # where nothing was measured, None is no number


def _case_rows(run: Recorded, case_id: str) -> list[tuple]:
    found, steps = run.fact(case_id, "prediction"), run.of(case_id)
    if found is None or "reason" in found:
        reason = "none was made" if found is None else str(found["reason"])
        return [(case_id, "", None, _highest(steps, "peak_alloc_mib"), None, {}, reason)]
    rows = []
    for phase in (*PHASES, RESERVED):
        figure = "peak_reserved_mib" if phase == RESERVED else f"peak_alloc_{phase}_mib"
        if figure in found:
            predicted, measured = found[figure], _highest(steps, figure)
            difference = None if measured is None else 100 * (measured / predicted - 1)
            rows.append((case_id, phase, predicted, measured, difference, _ranked(found["terms"].get(phase, {})), ""))
    return rows


def _highest(steps: pd.DataFrame, figure: str) -> float | None:
    values = steps[figure].astype(float).dropna()
    return None if values.empty else float(values.max())


def _ranked(terms: Mapping[str, float]) -> dict[str, float]:
    return {name: terms[name] for name in sorted(terms, key=terms.get, reverse=True) if terms[name] > 0}


def prediction_advice(run: Recorded, case_ids: Sequence[str]) -> list[str]:
    """Return a sentence for each case whose memory is not near what was predicted, naming the term that differs."""
    said = [line for case_id in case_ids for line in _out_of_memory(run, case_id)]
    for case_id in case_ids:
        if len(run.of(case_id)) < SETTLED_STEPS:
            continue
        rows = prediction_rows(run, [case_id]).dropna(subset=["difference_percent"])
        off = rows[rows["difference_percent"].abs() > DIFFERENCE_PERCENT]
        if off.empty:
            continue
        allocated = off[off["phase"] != RESERVED]
        row = off.iloc[0] if allocated.empty else allocated.loc[allocated["difference_percent"].abs().idxmax()]
        figure = "reserved memory" if row["phase"] == RESERVED else f"memory allocated in {row['phase']}"
        said.append(
            f"{case_id}: {figure} is {short(row['measured_mib'], 2)} MiB, {row['difference_percent']:+.0f} % from the "
            f"{short(row['predicted_mib'], 2)} MiB predicted. {_blame(run, case_id, str(row['phase']))}"
        )
    return said


def _out_of_memory(run: Recorded, case_id: str) -> list[str]:
    """Return what was predicted of a case that ran out of memory: how much it needs, and most for what."""
    case, found = run.case(case_id), run.fact(case_id, "prediction")
    if case is None or case["status"] != "oom" or found is None:
        return []
    if "reason" in found:
        return [f"{case_id}: ran out of memory. No prediction: {found['reason']}"]
    phase = max(found["terms"], key=lambda name: found[f"peak_alloc_{name}_mib"])
    largest = ", ".join(f"{name} {mib:,.0f}" for name, mib in list(_ranked(found["terms"][phase]).items())[:3])
    has = "" if pd.isna(case.get("device_total_mib")) else f"; the device has {case['device_total_mib']:,.0f} MiB"
    return [
        f"{case_id}: ran out of memory. Predicted: {found['peak_alloc_mib']:,.0f} MiB allocated, "
        f"{found['peak_reserved_mib']:,.0f} MiB reserved{has}. Most at the peak, in {phase}: {largest} MiB."
    ]


def _blame(run: Recorded, case_id: str, phase: str) -> str:
    """Return the term that a difference is in, as far as what was measured can tell them apart."""
    if phase == RESERVED:
        return "What is allocated agrees, so the difference is the allocator's: free blocks that it cannot use again."
    case, steps, found = run.case(case_id), run.of(case_id), run.fact(case_id, "prediction")
    peak = _highest(steps, f"peak_alloc_{phase}_mib") - found[f"peak_alloc_{phase}_mib"]
    state = float(case["state_mib"]) - found["state_mib"]
    between = _highest(steps, "alloc_mib") - found["alloc_mib"]
    terms = found["terms"][phase]
    parts = {
        "parameters, gradients or optimizer state": state,
        "what stays from one step to the next: a leak, or a table or workspace that was not foreseen": between - state,
        _within(terms, phase): peak - between,
    }
    name = max(parts, key=lambda part: abs(parts[part]))
    return f"Of {_signed(peak)} MiB, {_signed(parts[name])} MiB are in {name}."


def _signed(mib: float) -> str:
    return "+" * (mib >= 0) + short(mib, 2)


def _within(terms: Mapping[str, float], phase: str) -> str:
    """Return the terms that only live in a phase, the largest first."""
    passing = {name: terms[name] for name in ("activations", "loss", "communication", "temporaries") if terms.get(name)}
    ranked = ", ".join(f"{name} {short(mib, 2)} MiB" for name, mib in _ranked(passing).items())
    return f"what lives in {phase} alone (predicted: {ranked or 'nothing'})"


def predicted_cases(run: Recorded) -> list[str]:
    """Return the cases of a run to show a prediction of, in their order: not those that repeat the training."""
    return [str(name) for name in run.cases["case_id"] if name not in ("anomaly", "profiler", "hot")]
