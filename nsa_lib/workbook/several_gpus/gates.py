"""The gates of several GPUs: does the training do what one GPU does, on every rank, in the memory of each?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pandas as pd

from nsa_lib.contract.case import DDP, FSDP2
from nsa_lib.contract.figures import counted, step_time
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, GateResult, route_of, steps_gate, unless_cut_short
from nsa_lib.judgement.operators import growth_gate
from nsa_lib.judgement.prediction import prediction_advice
from nsa_lib.judgement.trend import judge_trend
from nsa_lib.runs.recorded import Recorded
from nsa_lib.workbook.several_gpus import same
from nsa_lib.workbook.several_gpus.cases import ONE, profiled
from nsa_lib.workbook.several_gpus.measures import (
    fact_of_ranks,
    fastest_gb_per_s,
    link_rows,
    memory_rows,
    rank_rows,
    ranks_of,
    stragglers,
)

CHECKLIST_FAIL_MIB = 75_000

SEGMENT_MIB = 20
"""What the allocator reserves at a time: growth of reserved memory below it is one segment, not a trend."""

PARTS_TOLERANCE = 1e-6
"""Of a sum of shares: they are quotients of whole numbers."""

EVEN_PERCENT = 10.0
"""By how much the peak of one rank may exceed that of another."""


def several_gates(run: Recorded) -> list[GateResult]:
    """Return the gates of a run on several GPUs: each case came to its end, then each strategy."""
    gates = [ranks_steps_gate(run, case_id) for case_id in run.info["case_ids"]]
    for strategy in run.parameter("strategies"):
        gates += [
            same.start_gate(run, strategy),
            same.data_gate(run, strategy),
            same.loss_gate(run, strategy),
            same.gradients_gate(run, strategy),
            same.parameters_gate(run, strategy),
            executed_gate(run, strategy),
            parts_gate(run, strategy),
            reserved_gate(run, strategy),
            trend_gate(run, strategy, "peak_alloc_mib", floor_mib=0),
            trend_gate(run, strategy, "peak_reserved_mib", floor_mib=SEGMENT_MIB),
            operators_gate(run, strategy),
            even_gate(run, strategy),
            straggler_gate(run, strategy),
        ]
    return gates


def ranks_steps_gate(run: Recorded, case_id: str) -> GateResult:
    """Judge that all ranks of a case did all its steps, and that it ended by itself."""
    gate = steps_gate(run, case_id, f"steps_{case_id}")
    if gate.outcome != PASS:
        return gate
    done = {rank: len(run.of(case_id, rank)) for rank in ranks_of(run, case_id)}
    short = [f"rank {rank} did {count}" for rank, count in done.items() if count != gate.limit]
    if short:
        return replace(gate, outcome=FAIL, measured=min(done.values()), detail=", ".join(short))
    return replace(gate, detail=f"on {len(done)} ranks") if len(done) > 1 else gate


def executed_gate(run: Recorded, strategy: str) -> GateResult:
    """Judge that on every rank every layer ran the backend, the dtype and the checkpointing that were asked for."""
    gate, case = GateResult(f"executed_{strategy}", True, NOT_RUN), run.case(strategy)
    seen = fact_of_ranks(run, strategy, "executed")
    if not seen or not all(seen):
        return replace(gate, detail="a rank ended before a step of it was seen")
    asked = case["asked"]
    route = route_of(asked["model"]) or "none"
    wanted = (route, 2 if asked["grad_checkpointing"] else 1, asked["dtype"], asked["device"])
    limit = _words(run.called(route), *wanted[1:])
    gate = replace(gate, limit=limit)
    for rank, steps in enumerate(seen):
        for step in steps:
            found = {
                *((*(route or ["none"]), passes) for route, passes in zip(step["routes"], step["passes"], strict=True))
            }
            dtypes = {dtype for kinds in step["dtypes"].values() for dtype in kinds}
            if found != {wanted[:2]} or dtypes != {wanted[2]} or step["devices"] != [wanted[3]]:
                backend, passes = max(found - {wanted[:2]} or found)
                said = _words(run.called(backend), passes, ", ".join(sorted(dtypes)), ", ".join(step["devices"]))
                return replace(gate, outcome=FAIL, measured=said, detail=f"rank {rank}, step {step['step']}")
    return unless_cut_short(replace(gate, outcome=PASS, measured=limit, detail=counted(len(seen), "rank")), case)


def parts_gate(run: Recorded, strategy: str) -> GateResult:
    """Judge that the ranks hold what the strategy says: with DDP all parameters each, with FSDP2 together one copy."""
    gate, case = GateResult(f"parts_{strategy}", True, NOT_RUN, unit="%"), run.case(strategy)
    seen = fact_of_ranks(run, strategy, "executed")
    if not seen or not all(seen):
        return replace(gate, detail="a rank ended before a step of it was seen")
    if any(step["held_share"] is None for steps in seen for step in steps):
        return replace(gate, detail="a rank did not say what it holds")
    wanted = len(seen) if strategy == DDP else 1
    for steps in zip(*seen, strict=False):
        held = sum(step["held_share"] for step in steps)
        said = f"{counted(len(seen), 'rank')} hold {100 * held:.4g} % of the parameters in all"
        gate = replace(gate, limit=100 * wanted, measured=float(f"{100 * held:.6g}"), detail=said)
        if abs(held - wanted) > PARTS_TOLERANCE:
            return replace(gate, outcome=FAIL, detail=f"step {steps[0]['step']}: {said}")
    return unless_cut_short(replace(gate, outcome=PASS), case)


def _words(backend: str, passes: int, dtype: str, device: str) -> str:
    return f"{backend}, forward {passes} times, {dtype} on {device}"


def reserved_gate(run: Recorded, strategy: str) -> GateResult:
    """Judge the peak of reserved memory of the rank that needs most: a warning above the limit, never beyond 75,000."""
    limit = run.parameter("reserved_limit_mib")
    gate = GateResult(f"peak_reserved_{strategy}", limit is not None, NOT_RUN, limit=limit, unit="MiB")
    peaks = _over_ranks(run, strategy, lambda rank: run.of(strategy, rank)["peak_reserved_mib"].max())
    if peaks is None:
        return replace(gate, detail="the memory of a rank was not read")
    rank = max(peaks, key=peaks.get)
    gate = replace(gate, measured=round(peaks[rank], 1), detail=f"rank {rank}")
    if limit is None:
        return replace(gate, detail=f"rank {rank}; no limit is set, reserved_limit_mib sets one")
    outcome = FAIL if peaks[rank] > max(limit, CHECKLIST_FAIL_MIB) else WARN if peaks[rank] > limit else PASS
    gate = replace(gate, outcome=outcome, margin=round(limit - peaks[rank], 1))
    return unless_cut_short(gate, run.case(strategy))


def _over_ranks(run: Recorded, case_id: str, figure: Callable[[int], float]) -> dict[int, float] | None:
    """Return a figure of every rank of a case, or None if one has none."""
    found = {rank: float(figure(rank)) for rank in ranks_of(run, case_id)}
    return None if not found or any(pd.isna(value) for value in found.values()) else found


def trend_gate(run: Recorded, strategy: str, column: str, *, floor_mib: float) -> GateResult:
    """Judge that a figure of memory rises steadily on no rank after warm-up, nor the allocator met its cap."""
    short = {"peak_alloc_mib": "trend_peak_alloc", "peak_reserved_mib": "trend_reserved"}[column]
    gate = GateResult(f"{short}_{strategy}", True, NOT_RUN, limit=10.0, unit="%")
    found = {}
    for rank in ranks_of(run, strategy):
        rows = run.of(strategy, rank)
        found[rank] = judge_trend(rows["step"].tolist(), rows[column].astype(float).tolist(), floor_mib=floor_mib)
    if not found:
        return replace(gate, detail="no step was recorded")
    severity = (PASS, WARN, NOT_RUN, FAIL)
    rank = max(found, key=lambda rank: (severity.index(found[rank].outcome), found[rank].growth or 0))
    worst = found[rank]
    if worst.growth is None:
        return replace(gate, detail=f"rank {rank}: {worst.detail}")
    growth = round(100 * worst.growth, 2)
    gate = replace(gate, outcome=worst.outcome, measured=growth, margin=gate.limit - growth)
    gate = replace(gate, detail=f"rank {rank}: {worst.detail}")
    pressed = [rank for rank in found if _pressed(run.of(strategy, rank))]
    if gate.outcome == PASS and pressed:
        gate = replace(gate, outcome=WARN, detail=f"{_ranks(pressed)}: the allocator is at its cap, or did not count")
    return unless_cut_short(gate, run.case(strategy))


def _pressed(rows: pd.DataFrame) -> bool:
    """Return whether the allocator retried or ran out after warm-up, or its counters are missing."""
    counters = rows.loc[rows["phase"] == "step", ["alloc_retries", "ooms"]].astype(float)
    return bool(counters.isna().any(axis=None) or (counters.max() > counters.min()).any())


def operators_gate(run: Recorded, strategy: str) -> GateResult:
    """Judge that on no rank an operator is called more often late than right after warm-up."""
    case_id = profiled(strategy) if run.parameter("device") == "cuda" else strategy
    case, windows = run.case(case_id), fact_of_ranks(run, case_id, "operators")
    name = f"operator_growth_{strategy}"
    if case is None or not windows:
        return growth_gate(name, case, run.of(case_id))
    judged = {
        rank: growth_gate(name, {**case, "operators": own}, run.of(case_id, rank)) for rank, own in enumerate(windows)
    }
    rank = max(judged, key=lambda rank: (PASS, NOT_RUN, FAIL).index(judged[rank].outcome))
    return replace(judged[rank], detail=f"rank {rank}: {judged[rank].detail}")


def even_gate(run: Recorded, strategy: str) -> GateResult:
    """Judge that all ranks need about the same memory. Where each holds other rows this is only shown."""
    gate = GateResult(f"even_{strategy}", strategy == DDP, NOT_RUN, limit=EVEN_PERCENT, unit="%")
    peaks = _over_ranks(run, strategy, lambda rank: run.of(strategy, rank)["peak_alloc_mib"].max())
    if peaks is None:
        return replace(gate, detail="the memory of a rank was not read")
    most, least = max(peaks, key=peaks.get), min(peaks, key=peaks.get)
    over = round(100 * (peaks[most] / peaks[least] - 1), 2)
    outcome = PASS if over <= EVEN_PERCENT else FAIL
    said = (
        f"each rank allocates {peaks[most]:,.1f} MiB"
        if over == 0
        else f"rank {most} allocates {peaks[most]:,.1f} MiB, rank {least} {peaks[least]:,.1f} MiB"
    )
    gate = replace(gate, outcome=outcome, measured=over, margin=round(EVEN_PERCENT - over, 2), detail=said)
    return unless_cut_short(gate, run.case(strategy))


def straggler_gate(run: Recorded, strategy: str) -> GateResult:
    """Warn of a rank whose layers take longer than those of the others by more than the steps vary by themselves."""
    gate = GateResult(f"straggler_{strategy}", run.parameter("gpus") > 1, NOT_RUN, unit="%")
    rows = stragglers(run)
    own = rows[rows["case_id"] == strategy]
    if own.empty:
        return replace(gate, detail="needs several ranks and steps after the warm-up")
    worst = own.loc[(own["slower"] - own["band"]).idxmax()]
    over = bool(worst["slower"] > worst["band"])
    said = f"rank {worst['rank']:.0f}: {step_time(worst['own_ms'])} a step in its layers"
    said += f"; steps vary by {100 * worst['spread']:.1f} %"
    figures = {name: round(100 * float(worst[of]), 1) for name, of in (("measured", "slower"), ("limit", "band"))}
    margin = round(figures["limit"] - figures["measured"], 1)
    return replace(gate, outcome=WARN if over else PASS, margin=margin, detail=said, **figures)


def _ranks(ranks: Iterable[int]) -> str:
    return same.named(list(ranks))


def several_advice(run: Recorded) -> list[str]:
    """Return what a user may want to know; it never decides."""
    return [*_headroom(run), *_link(run), *prediction_advice(run, _predicted(run))]


def _predicted(run: Recorded) -> list[str]:
    return [case_id for case_id in run.info["case_ids"] if _has_prediction(run.fact(case_id, "prediction"))]


def _has_prediction(found: Mapping | None) -> bool:
    return found is not None and "reason" not in found


def _headroom(run: Recorded) -> list[str]:
    rows = memory_rows(run).dropna(subset=["headroom_mib"])
    said = []
    for row in rows[rows["case_id"].isin(run.parameter("strategies"))].itertuples():
        one = row.peak_alloc_mib + row.headroom_mib
        what = {DDP: "copies of the model", FSDP2: "a part of the model on each"}[row.case_id]
        said.append(
            f"{row.case_id} ({what}): a GPU's peak is {row.peak_alloc_mib:,.0f} MiB, that of one GPU with the whole "
            f"batch {one:,.0f} MiB, {100 * row.headroom_mib / one:+.0f} % of it free."
        )
    return said


def _link(run: Recorded) -> list[str]:
    fastest = fastest_gb_per_s(link_rows(run))
    if fastest is None:
        return []
    rate = run.info["environment"].get("nvlink_gb_per_s")
    beside = f"; nvidia-smi tells {rate:,.0f} GB/s of NVLink a direction" if rate else ""
    return [f"The fastest collective moved {fastest:,.1f} GB/s (bus bandwidth){beside}."]


def several_headline(run: Recorded) -> str:
    """Return the figures that a verdict is said with."""
    rows = rank_rows(run)
    shared = rows[rows["case_id"].isin(run.parameter("strategies"))] if len(rows) else rows
    if shared.empty or shared["peak_alloc_mib"].isna().all():
        return "no step of several ranks was recorded"
    peaks = shared.groupby("case_id", sort=False)["peak_alloc_mib"].max()
    alone = rows.loc[rows["case_id"] == ONE, "peak_alloc_mib"].max()
    said = ", ".join(f"{name} {mib:,.0f}" for name, mib in peaks.items())
    return f"{run.parameter('gpus')} ranks; peak allocated of a rank: {said} MiB, of one GPU {alone:,.0f} MiB"
