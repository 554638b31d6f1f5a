"""What ranks recorded, compared with each other and with one GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nsa_lib.contract.case import FSDP2, WARMUP_STEPS
from nsa_lib.runs.recorded import Recorded, measured_once
from nsa_lib.workbook.several_gpus.cases import COLLECTIVES, IN_TURN, ONE, other_checkpointing


def ranks_of(run: Recorded, case_id: str) -> range:
    """Return the ranks that a case was asked for; none if it was not recorded."""
    case = run.case(case_id)
    return range(case["asked"]["ranks"] if case and case["asked"] else 0)


def fact_of_ranks(run: Recorded, case_id: str, name: str) -> list[object]:
    """Return a fact of each rank of a case, None where a rank did not record it."""
    found = run.fact(case_id, "ranks") or []
    return [found[rank].get(name) if rank < len(found) else None for rank in ranks_of(run, case_id)]


def by_step(run: Recorded, case_id: str, column: str) -> pd.DataFrame | None:
    """Return a column of all ranks of a case, a row a step and a column a rank; None unless every rank has steps."""
    columns = {rank: run.of(case_id, rank).set_index("step")[column] for rank in ranks_of(run, case_id)}
    if not columns or any(column.isna().any() or column.empty for column in columns.values()):
        return None
    return pd.DataFrame(columns).dropna()


def loss_differences(run: Recorded, case_id: str, of: str = ONE) -> pd.Series | None:
    """Return for each step by how much the ranks' mean loss differs from that of a case of one GPU, over its first."""
    ranks, one = by_step(run, case_id, "loss"), run.of(of).set_index("step")["loss"]
    if ranks is None or one.empty:
        return None
    return ((ranks.mean(axis=1) - one) / one.iloc[0]).dropna().abs()


def norm_ratios(run: Recorded, case_id: str, of: str = ONE) -> pd.DataFrame | None:
    """Return for each step and rank the factor by which the norm of its gradients is off from one GPU's, 1 for none.

    Of a rank that holds a part of every gradient, that part's norm; else the one that is furthest off.
    """
    ranks, one = by_step(run, case_id, "part_norms"), run.of(of).set_index("step")["part_norms"]
    if ranks is None or one.empty or one.isna().any():
        return None
    sharded = run.case(case_id)["asked"]["strategy"] == FSDP2
    steps = ranks.index.intersection(one.index)
    rows = {
        step: {
            rank: max(map(_factor, ranks.loc[step, rank], one[step][rank : rank + 1] if sharded else one[step]))
            for rank in ranks
        }
        for step in steps
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(ranks))


def _factor(norm: float, expected: float) -> float:
    if norm == expected:
        return 1.0
    if not (norm > 0 and expected > 0 and math.isfinite(norm)):
        return math.inf
    return max(norm / expected, expected / norm)


def parameter_distances(run: Recorded, taken: Sequence[Mapping], of: str = ONE) -> pd.DataFrame:
    """Return how far digests lie from the parameters of one GPU, over their norm: a row a step, a column a part."""
    expected = {found["step"]: found for found in run.fact(of, "digests") or ()}
    found = {own["step"]: distances(own, expected[own["step"]]) for own in taken if own["step"] in expected}
    return pd.DataFrame.from_dict(found, orient="index")


@dataclass(frozen=True)
class Parting:
    """By how much one GPU's training parts from itself with its sums in another order, step by step."""

    loss: pd.Series
    """Over its first loss."""
    norm: pd.Series
    """Factor of a gradient's norm, above 1."""
    parameters: pd.Series
    """Distance over their norm."""


NOTHING = Parting(*(pd.Series(dtype=float) for _ in range(3)))


@measured_once
def parting(run: Recorded) -> Parting:
    """Return what the case IN_TURN shows; NOTHING where it or ONE recorded no step; one rank alone has none."""
    loss, norm = loss_differences(run, IN_TURN), norm_ratios(run, IN_TURN)
    if loss is None or norm is None or loss.empty or norm.empty:
        return NOTHING
    apart = parameter_distances(run, run.fact(IN_TURN, "digests") or ())
    return Parting(loss, norm.max(axis=1) - 1, apart.max(axis=1).astype(float))


def distances(found: Mapping, expected: Mapping) -> list[float]:
    """Return how far the parameters of two digests lie apart, over their norm, for each part."""
    apart = []
    for own, other in zip(found["parts"], expected["parts"], strict=True):
        squares = np.square(np.subtract(own["projections"], other["projections"]))
        distance = float(np.sqrt(squares.mean()) / other["norm"]) if other["norm"] else math.inf
        apart.append(distance if math.isfinite(distance) else math.inf)
    return apart


def odd_ones(values: Sequence[object], right: object = None) -> list[int]:
    """Return the ranks whose value is another than `right`, or than what most have; of two that differ, both."""
    if right is None:
        counts = {value: list(values).count(value) for value in values}
        most = max(counts.values())
        if most * 2 <= len(values) and len(counts) > 1:
            return list(range(len(values)))
        right = next(value for value, count in counts.items() if count == most)
    return [rank for rank, value in enumerate(values) if value != right]


LEAST_BAND = 0.05
"""A rank is never a straggler that is slower by less than this."""

SPREADS = 3
"""A straggler is slower by more than this many times the spread of the steps."""

NORMAL = 1.4826
"""From a median absolute deviation to a standard deviation."""


@measured_once
def stragglers(run: Recorded) -> pd.DataFrame:
    """Return how much slower each rank is than the others, by its own time in its layers; a row a case and rank.

    Columns: case_id, rank, own_ms (median of a step), slower (over the median of the other ranks in the same step, as
    a fraction, median over the steps), spread (of that over the steps), band (what it may be).
    """
    rows = []
    for case_id in run.info["case_ids"]:
        own = by_step(run, case_id, "own_ms") if len(ranks_of(run, case_id)) > 1 else None
        if own is None:
            continue
        settled = own[own.index > WARMUP_STEPS].astype(float)
        if settled.empty:
            continue
        for rank in settled:
            slower = settled[rank] / settled.drop(columns=rank).median(axis=1) - 1
            spread = NORMAL * (slower - slower.median()).abs().median()
            band = max(LEAST_BAND, SPREADS * spread)
            rows.append((case_id, rank, settled[rank].median(), slower.median(), spread, band))
    return pd.DataFrame(rows, columns=["case_id", "rank", "own_ms", "slower", "spread", "band"])


@measured_once
def rank_rows(run: Recorded) -> pd.DataFrame:
    """Return what each rank of each training needed, a row each: steps, last loss, step_ms, own_ms, memory in MiB."""
    rows = []
    for case_id in run.info["case_ids"]:
        for rank in ranks_of(run, case_id) if case_id != COLLECTIVES else ():
            steps = run.of(case_id, rank)
            settled = steps[steps["step"] > min(WARMUP_STEPS, len(steps) - 1)]
            rows.append(
                {
                    "case_id": case_id, "rank": rank, "steps": len(steps),
                    "loss": steps["loss"].iloc[-1] if len(steps) else None,
                    "step_ms": settled["step_ms"].median(), "own_ms": settled["own_ms"].median(),
                    "peak_alloc_mib": steps["peak_alloc_mib"].max(),
                    "peak_reserved_mib": steps["peak_reserved_mib"].max(),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


@measured_once
def memory_rows(run: Recorded) -> pd.DataFrame:
    """Return what a GPU needs alone and with each strategy, with and without checkpointing; a row each.

    Columns: strategy, case_id, grad_checkpointing, state_mib (parameters, gradients, optimizer), between_mib (what else
    stays from step to step: buckets, tables, workspaces), within_mib (what only lives in a step at its peak:
    activations, gathered parameters, temporaries), peak_alloc_mib, predicted_mib, difference_percent, headroom_mib
    (what one GPU with the whole batch needs more). Predicted besides: predicted_state_mib, and of the peak
    activations_mib (with the loss) and communication_mib, which no meter tells apart. Where ranks differ, those of the
    rank that needs most.
    """
    rows = []
    for case_id in (ONE, *run.parameter("strategies")):
        for name in (case_id, other_checkpointing(case_id)):
            case = run.case(name)
            if case is None or case["asked"] is None:
                continue
            rows.append({"strategy": case_id, **_memory_row(run, name, case)})
    frame = pd.DataFrame(rows)
    alone = frame[frame["case_id"].isin((ONE, other_checkpointing(ONE)))].set_index("grad_checkpointing")
    needs = frame["grad_checkpointing"].map(alone["peak_alloc_mib"])
    return frame.assign(headroom_mib=needs - frame["peak_alloc_mib"])


def _memory_row(run: Recorded, case_id: str, case: Mapping) -> dict[str, object]:
    peaks = {rank: run.of(case_id, rank)["peak_alloc_mib"].max() for rank in ranks_of(run, case_id)}
    known = {rank: peak for rank, peak in peaks.items() if not pd.isna(peak)}
    rank = max(known, key=known.get) if known else 0
    states = fact_of_ranks(run, case_id, "state_mib") if case["ranks"] else [case.get("state_mib")]
    state = math.nan if states[rank] is None else float(states[rank])
    between, peak = run.of(case_id, rank)["alloc_mib"].iloc[1:].median(), known.get(rank, math.nan)
    found = case["prediction"] or {}
    predicted = found.get("peak_alloc_mib", math.nan)
    return {
        "case_id": case_id,
        "grad_checkpointing": bool(case["asked"]["grad_checkpointing"]),
        "state_mib": state,
        "between_mib": between - state,
        "within_mib": peak - between,
        "peak_alloc_mib": peak,
        "predicted_mib": predicted,
        "difference_percent": 100 * (peak / predicted - 1),
        "predicted_state_mib": found.get("state_mib", math.nan),
        **_terms_of_peak(found),
    }


def _terms_of_peak(prediction: Mapping) -> dict[str, float]:
    """Return what a predicted peak holds of what no meter tells apart."""
    terms = prediction.get("terms") or {}
    phase = max(terms, key=lambda name: prediction[f"peak_alloc_{name}_mib"], default=None)
    if phase is None:
        return {"activations_mib": math.nan, "communication_mib": math.nan}
    held = terms[phase]
    return {
        "activations_mib": held["activations"] + held["loss"],
        "communication_mib": held.get("communication", 0.0),
    }


@measured_once
def link_rows(run: Recorded) -> pd.DataFrame:
    """Return the bandwidth of each collective and size: its median over rounds of the slowest rank, in GB/s."""
    steps = run.steps[run.steps["case_id"] == COLLECTIVES]
    if steps.empty:
        return pd.DataFrame(columns=["collective", "size_mib", "step_ms", "bus_gb_per_s"])
    ranks = steps.groupby(["collective", "size_mib", "rank"], sort=False)[["step_ms", "bus_gb_per_s"]].median()
    grouped = ranks.groupby(level=[0, 1], sort=False)
    return pd.DataFrame(
        {"step_ms": grouped["step_ms"].max(), "bus_gb_per_s": grouped["bus_gb_per_s"].min()}
    ).reset_index()


def fastest_gb_per_s(rows: pd.DataFrame) -> float | None:
    """Return the highest bandwidth of a link, or None if none was measured."""
    return None if rows.empty else float(rows["bus_gb_per_s"].max())
