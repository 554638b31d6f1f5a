"""The gates of the backend contrast, and what it advises: which backend, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import pandas as pd

from nsa_lib.contract.agenda import DENSE, RIGHT
from nsa_lib.contract.figures import largest, short, step_time
from nsa_lib.judgement.allocator import allocator_gate
from nsa_lib.judgement.attestation import AREAS, attested_gate, replay_gate, why_no_reference
from nsa_lib.judgement.checks import check_gate
from nsa_lib.judgement.gate import (
    FAIL,
    NOT_RUN,
    PASS,
    GateResult,
    route_gate,
    steps_gate,
    unless_cut_short,
)
from nsa_lib.judgement.operators import growth_gate
from nsa_lib.runs.recorded import Recorded
from nsa_lib.subject.config import FUSED, OWN
from nsa_lib.workbook.backend_contrast.measures import (
    WHOLE,
    contrast_rows,
    early_counts,
    first_faster,
    on_trial,
    stands_alone,
    swept,
    timing_rows,
)
from nsa_lib.workbook.backend_contrast.timing import timing_gate

PEAK_SPREAD_PERCENT = 10.0
"""By how much the peaks of the backends may differ: one model needs one amount of memory, however it attends."""


ATTENTION_ERROR_LIMIT = {"bfloat16": 0.05, "float16": 0.02, "float32": 0.01, "float64": 0.01}
"""Relative error against float64. Rounding alone gives 0.013 in bfloat16 at the checklist's sizes and 2e-6 in float32;
a row in which it selects another block adds some. Attention that is wrong is off by tenths."""

SAME_SPEED = 1.05
"""Times within this factor of the fastest count as equal, and memory decides."""


def contrast_gates(run: Recorded) -> list[GateResult]:
    """Return the gates of a contrast: those of each backend, and those over all of them.

    Dense attention is only shown, unless it is what was asked for: then it is judged like a backend.
    """
    asked = on_trial(run)
    judged = (*run.backends, DENSE) if asked == DENSE else run.backends
    each = [judge(run, name) for judge in EACH for name in judged]
    allocation = allocator_gate(run, [f"model_{name}" for name in judged])
    owed = RIGHT if stands_alone(run) else {}
    right = [check_gate(run, group, name, f"_{asked}") for group, names in owed.items() for name in names]
    yardstick = [] if DENSE in judged else [ran_gate(run, DENSE)]
    return [*each, *right, peak_spread_gate(run), distinct_gate(run), *yardstick, timing_gate(run), allocation]


def ran_gate(run: Recorded, backend: str) -> GateResult:
    """Judge that the whole model trained all its steps with a backend; of the yardstick it is only shown."""
    return steps_gate(run, f"model_{backend}", f"ran_{backend}", required=backend != DENSE or on_trial(run) == DENSE)


def backend_route_gate(run: Recorded, backend: str) -> GateResult:
    """Judge that the code of a backend is what ran in its case."""
    return route_gate(run, [f"model_{backend}"], f"route_{backend}")


def error_gate(run: Recorded, backend: str) -> GateResult:
    """Judge a backend's output and gradients: the whole layer, and its selected branch against the reference."""
    limit, case = ATTENTION_ERROR_LIMIT[run.parameter("dtype")], run.case(f"model_{backend}")
    gate = GateResult(f"error_{backend}", True, NOT_RUN, limit=limit)
    if case is not None and (why := why_no_reference(case["asked"])):
        return replace(gate, required=False, detail=why)
    layer, selected = (run.fact(f"model_{backend}", field) for field in ("attention_error", "selected_error"))
    if layer is None or selected is None:
        return replace(gate, detail="the case ended before its attention was compared")
    worst = largest([*layer.values(), *selected.values()])
    detail = f"relative errors; layer: {_said(layer)}; selected branch on two heads: {_said(selected)}"
    outcome = PASS if worst <= limit else FAIL
    measured = float(f"{worst:.2g}")
    gate = replace(gate, outcome=outcome, measured=measured, margin=round(limit - measured, 4), detail=detail)
    return unless_cut_short(gate, case)


def operator_gate(run: Recorded, backend: str) -> GateResult:
    """Judge that no operator is called more often late than early with a backend."""
    case_id = f"model_{backend}"
    return growth_gate(f"operator_growth_{backend}", run.case(case_id), run.of(case_id))


def attested_by_area(area: str) -> Callable[[Recorded, str], GateResult]:
    """Return the gate of one area over the recorded steps of a backend."""
    return lambda run, backend: attested_gate(run, f"model_{backend}", area, f"_{backend}")


def unrecorded_gate(run: Recorded, backend: str) -> GateResult:
    """Judge that steps which nobody recorded are the same when they are taken again."""
    return replay_gate(run, f"model_{backend}", f"_{backend}")


EACH = (ran_gate, backend_route_gate, error_gate, *map(attested_by_area, AREAS), unrecorded_gate, operator_gate)
"""The gates of one backend."""


def peak_spread_gate(run: Recorded) -> GateResult:
    """Judge that the backends' peaks of allocated memory are close to each other; on a CPU that is only shown.

    A laptop's model is so small that temporary buffers of a backend are a large part of it. `fused` also computes the
    other branches and holds less of them: it may need less than the others, but not more.
    """
    on_gpu = run.parameter("device") == "cuda"
    gate = GateResult("peak_spread", on_gpu, NOT_RUN, limit=PEAK_SPREAD_PERCENT, unit="%")
    peaks = _peaks(run)
    if set(peaks) != set(run.backends):
        missing = [run.called(name) for name in run.backends if name not in peaks]
        return replace(gate, detail=f"no peak of a whole run of {', '.join(missing)}")
    plain = {name: mib for name, mib in peaks.items() if name not in (FUSED, OWN)}
    least = min(plain.values())
    spread = _spread_percent({name: max(mib, least) for name, mib in peaks.items() if name != OWN})
    if stands_alone(run):
        peaks.pop(OWN, None)  # another attention needs another amount
    detail = ", ".join(f"{run.called(name)} {mib:,.1f} MiB" for name, mib in peaks.items())
    outcome, margin = PASS if spread <= PEAK_SPREAD_PERCENT else FAIL, round(PEAK_SPREAD_PERCENT - spread, 2)
    return replace(gate, outcome=outcome, measured=round(spread, 2), margin=margin, detail=detail)


def distinct_gate(run: Recorded) -> GateResult:
    """Judge that no two backends have the same peak and the same operators: two names for one code path."""
    gate = GateResult("distinct", True, NOT_RUN, limit=0, unit="pairs")
    peaks = _peaks(run)
    marks = {name: (mib, counts) for name, mib in peaks.items() if (counts := early_counts(run, name))}
    same = [f"{run.called(a)} and {run.called(b)}" for a, b in combinations(marks, 2) if marks[a] == marks[b]]
    if same:
        detail = f"same peak and same operators: {'; '.join(same)}"
        return replace(gate, outcome=FAIL, measured=len(same), detail=detail)
    if set(marks) != set(run.backends):
        return replace(gate, detail="peak or operators of a backend were not recorded")
    return replace(gate, outcome=PASS, measured=0, detail="peaks or operator counts differ in every pair")


def recommended(run: Recorded) -> str | None:
    """Return the backend to use: of those that are right the fastest; of equally fast ones the one with least memory.

    None if no backend passed all its own gates and was timed.
    """
    rows = contrast_rows(run).set_index("backend")
    right = [name for name in run.backends if all(judge(run, name).outcome == PASS for judge in EACH)]
    candidates = rows.loc[right].dropna(subset=["total_ms", "peak_alloc_mib"])
    if candidates.empty:
        return None
    fast = candidates[candidates["total_ms"] <= SAME_SPEED * candidates["total_ms"].min()]
    return fast.sort_values(["peak_alloc_mib", "total_ms"]).index[0]


def contrast_advice(run: Recorded) -> list[str]:
    """Return what is on trial beside the others, which backend to use and why, and where each is faster than dense.

    Another attention than ours is never to be replaced: no backend of ours computes it.
    """
    said = [f"{_beside_others(run)}."] if on_trial(run) else []
    if stands_alone(run):
        said.append("NSA's backends compute another attention: they are beside it to compare, none to take its place.")
    elif (chosen := recommended(run)) is None:
        said.append("No backend can be recommended: none passed all its gates and was timed.")
    else:
        said.append(_reason(_by_name(run), run.called(chosen)))
    crossings = first_faster(run)
    faster = [f"with {backend} from S={length:,} on" for backend, length in crossings.items() if length is not None]
    slower = [backend for backend, length in crossings.items() if length is None]
    what = swept(timing_rows(run))
    if faster:
        said.append(f"{WHOLE[what].capitalize()} is faster than dense attention {', '.join(faster)}.")
    if slower:
        said.append(f"Not faster than dense attention at any length measured: {WHOLE[what]} with {', '.join(slower)}.")
    return said


def _by_name(run: Recorded) -> pd.DataFrame:
    """Return what is known of each whole model, by what a reader is told that it is."""
    return contrast_rows(run).set_index("called")


def _reason(rows: pd.DataFrame, chosen: str) -> str:
    own = rows.loc[chosen]
    said = f"Use {chosen}: it is right, and forward and backward of the model take {step_time(own['total_ms'])}"
    said += _times_beside(rows["total_ms"], chosen)
    return f"{said}; its peak is {own['peak_alloc_mib']:,.1f} MiB allocated{_beside(rows, chosen)}."


def _beside(rows: pd.DataFrame, chosen: str) -> str:
    mib = rows["peak_alloc_mib"].dropna()
    return _in_brackets([f"{name} {mib[name]:,.1f}" for name in mib.index if name != chosen])


def _as_long(name: str, times: float) -> str:
    return f"{name} {short(times, 2)}x as long"


def _times_beside(total_ms: pd.Series, chosen: str, say: Callable[[str, float], str] = _as_long) -> str:
    """Say how long each other one that was timed takes, in times of the chosen one."""
    timed = [name for name in total_ms.index if name != chosen and total_ms[name] > 0]
    return _in_brackets([say(name, total_ms[name] / total_ms[chosen]) for name in timed])


def _in_brackets(words: list[str]) -> str:
    return f" ({', '.join(words)})" if words else ""


def contrast_headline(run: Recorded) -> str:
    """Return the figures that a contrast's verdict is said with: of what is on trial, or of the backend to use."""
    if on_trial(run):
        return _beside_others(run)
    chosen = recommended(run)
    if chosen is None:
        return "no backend can be recommended"
    total_ms = contrast_rows(run).set_index("backend")["total_ms"]
    said = f"{chosen} recommended: {step_time(total_ms[chosen])} forward and backward of the model"
    said += _times_beside(total_ms[list(run.backends)], chosen)
    peaks = _peaks(run)
    return f"{said}, memory peaks within {_spread_percent(peaks):.1f} % of each other" if len(peaks) > 1 else said


def _beside_others(run: Recorded) -> str:
    """Return time and memory of what is on trial, in its own figures and beside those of the others."""
    label, rows = run.called(on_trial(run)), _by_name(run)
    own = rows.loc[label]
    if not (own["total_ms"] > 0 and own["peak_alloc_mib"] > 0):
        return f"{label} was not measured to its end"
    said = f"{label}: {step_time(own['total_ms'])} forward and backward of the model"
    said += _times_beside(rows["total_ms"], label, lambda name, times: f"{short(1 / times, 2)}x {name}")
    return f"{said}, {own['peak_alloc_mib']:,.1f} MiB peak allocated{_beside(rows, label)}"


def _peaks(run: Recorded) -> dict[str, float]:
    """Return the peak allocated memory [MiB] of the backends that trained to their end."""
    rows = contrast_rows(run).set_index("backend")["peak_alloc_mib"].dropna()
    return {name: float(rows[name]) for name in run.backends if name in rows and ran_gate(run, name).outcome == PASS}


def _spread_percent(peaks: dict[str, float]) -> float:
    return 100 * (max(peaks.values()) - min(peaks.values())) / min(peaks.values())


def _said(errors: dict[str, float]) -> str:
    return ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
