"""The gates of the production smoke, and its advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from statistics import median

from nsa_lib.contract.case import FRESH_STEPS, WARMUP_STEPS
from nsa_lib.contract.figures import counted
from nsa_lib.judgement.allocator import allocator_gate
from nsa_lib.judgement.attestation import AREAS, attested_gate, executed_gate, recomputation_gate, replay_gate
from nsa_lib.judgement.clock import clock_gate
from nsa_lib.judgement.compiled import compiled_gate
from nsa_lib.judgement.fingerprint import kept_bits_gate, same_bits_gate
from nsa_lib.judgement.gate import (
    FAIL,
    NOT_RUN,
    PASS,
    WARN,
    GateResult,
    ended_well,
    how_it_ended,
    outcome_of,
    route_gate,
    steps_gate,
    unless_cut_short,
)
from nsa_lib.judgement.memory_order import memory_order_gate
from nsa_lib.judgement.operators import growth_gate
from nsa_lib.judgement.prediction import prediction_advice
from nsa_lib.judgement.selection import selection_advice
from nsa_lib.judgement.trend import judge_trend, steps_to_limit
from nsa_lib.runs.recorded import Recorded
from nsa_lib.workbook.smoke.cases import HOT

CHECKLIST_RESERVED_MIB = 70_000

CHECKLIST_FAIL_MIB = 75_000

SEGMENT_MIB = 20
"""What the allocator reserves at a time: growth of reserved memory below it is one segment, not a trend."""

LOSS_FALL_PERCENT = 1.0
"""By how much the loss must fall from the first ten steps to the last ten: more than its noise on a fixed batch."""

FRESH_NOISE_PERCENT = 3.0
"""By how much the mean loss of a batch of fresh tokens may lie below a guess. A trained model is above it."""

ROW_CHANGE_LIMIT = {"bfloat16": 0.05, "float16": 0.02, "float32": 1e-4, "float64": 1e-9}
"""Change of a row before an edited token, over the largest row. `packed` and `fused` place queries by what others
chose, so their sums may be rounded otherwise, and a near tie may choose another block."""

SLACK_PERCENT = 30
"""Allocator slack, (reserved - active) / reserved, from which advice is given."""


def smoke_gates(run: Recorded) -> list[GateResult]:
    """Return the gates of the production smoke, in the order of the checklist."""
    judged = [
        steps_gate(run, "training", "steps"),
        finite_gate(run),
        anomaly_gate(run),
        loss_gate(run),
        route_gate(run, ["training"], "route"),
        *(attested_gate(run, "training", area) for area in AREAS),
        replay_gate(run, "training"),
        same_bits_gate(run, "training", HOT),
        *([kept_bits_gate(run, "training", HOT)] if run.was_given("fingerprint") else []),
        future_gate(run),
        executed_gate(run, "training"),
        recomputation_gate(run, "training", prerequisite=run.info["profile"] == "checklist"),
        *([compiled_gate(run, "training", "profiler")] if run.parameter("compile") else []),
        allocator_gate(run, ["training"]),
        *reserved_gates(run),
        memory_order_gate(run),
        clock_gate(run, "training"),
        trend_gate(run, "trend_peak_alloc", "peak_alloc_mib", floor_mib=0),
        trend_gate(run, "trend_reserved", "peak_reserved_mib", floor_mib=SEGMENT_MIB),
        operator_gate(run),
    ]
    return judged


def finite_gate(run: Recorded) -> GateResult:
    """Judge that no loss and no gradient norm was NaN or Inf."""
    gate = GateResult("finite", True, PASS, limit=0, detail="losses and gradient norms that are NaN or Inf")
    training, rows = run.case("training"), run.of("training")
    if training is not None and training["status"] == "nan":
        return replace(gate, outcome=FAIL, detail=training["reason"])
    if rows.empty:
        return replace(gate, outcome=NOT_RUN, detail="no step was recorded")
    figures = rows[["loss", "grad_norm"]].astype(float)
    bad = int((figures.isna() | figures.abs().eq(float("inf"))).to_numpy().sum())
    gate = replace(gate, measured=bad, outcome=FAIL if bad else PASS)
    return unless_cut_short(gate, training)


def anomaly_gate(run: Recorded) -> GateResult:
    """Judge that all steps under autograd's anomaly detection found nothing, and that the detection was in force."""
    gate, case = GateResult("anomaly", True, NOT_RUN), run.case("anomaly")
    if case is None:
        return replace(gate, detail="switched off by anomaly=False")
    if not ended_well(case):
        return replace(gate, outcome=outcome_of(case), detail=how_it_ended(case))
    done = steps_gate(run, "anomaly", "anomaly")
    if done.outcome != PASS or not case["executed"]:
        return replace(gate, outcome=done.outcome if case["executed"] else NOT_RUN, detail=done.detail)
    if not all(step["detects_anomalies"] for step in case["executed"]):
        return replace(gate, outcome=FAIL, detail="anomaly detection was not in force")
    if case["planted_nan"] is None:
        return replace(gate, detail="no NaN was planted to see whether it is noticed")
    if case["planted_nan"]["said"] is None:
        return replace(gate, outcome=FAIL, detail="anomaly detection did not notice a NaN that was planted")
    return replace(gate, outcome=PASS, detail=f"{counted(len(run.of('anomaly')), 'step')} without a finding")


def loss_gate(run: Recorded) -> GateResult:
    """Judge that the loss falls: median of the last ten steps against that of the first ten.

    A warning if it falls all the way, but by less than asked: a narrow model or a small learning rate does.
    """
    gate = GateResult("loss_falls", True, PASS, limit=LOSS_FALL_PERCENT, unit="%")
    losses = run.of("training")["loss"].astype(float).dropna().tolist()
    if len(losses) < 20:
        return replace(gate, outcome=NOT_RUN, detail=f"needs 20 steps, {len(losses)} were recorded")
    medians = [median(losses[max(0, end - 10) : end]) for end in range(len(losses), 9, -10)][::-1]
    first, last = median(losses[:10]), medians[-1]
    fall = 100 * (first - last) / first if first else 0.0
    gate = replace(gate, measured=round(fall, 2), detail=f"{first:.3f} to {last:.3f} nats; at least the limit is asked")
    steadily = all(later < earlier for earlier, later in pairwise(medians))
    outcome = PASS if fall >= LOSS_FALL_PERCENT else WARN if steadily else FAIL
    return unless_cut_short(replace(gate, outcome=outcome), run.case("training"))


def future_gate(run: Recorded) -> GateResult:
    """Judge that nothing is read from the future or from other sequences, at full length and on fresh tokens."""
    gate = GateResult("future", True, NOT_RUN, limit=0, unit="findings")
    found = run.fact("training", "fresh_tokens")
    if found is None:
        return replace(gate, detail="the case ended before it was shown fresh tokens")
    lowest, floor = min(found["losses"], default=None), (1 - FRESH_NOISE_PERCENT / 100) * found["guess"]
    limit = ROW_CHANGE_LIMIT[run.parameter("dtype")]
    wrong = [f"loss {loss} on fresh tokens" for loss in found["losses"] if loss is None or loss < floor]
    wrong += [
        f"rows before token {at} change by {change} when it is edited"
        for at, change in found["changes"].items()
        if change is None or change > limit
    ]
    wrong += [f"an edit of token {at} and those after it changes no row" for at in found["unseen"]]
    if run.parameter("batch") > 1 and (found["others"] is None or found["others"] > limit):
        wrong.append(f"one sequence of the batch changes the others by {found['others']}")
    if wrong:
        return replace(gate, outcome=FAIL, measured=len(wrong), detail="; ".join(wrong))
    if why := _too_little_shown(found, run.parameter("batch"), run.parameter("seq_len")):
        return replace(gate, detail=why)
    detail = (
        f"lowest loss of {len(found['losses'])} steps on fresh tokens {lowest:.3f}, a guess is {found['guess']:.3f}; "
        f"edits at {', '.join(found['changes'])} change no row before"
    )
    return unless_cut_short(replace(gate, outcome=PASS, measured=0, detail=detail), run.case("training"))


def _too_little_shown(found: Mapping, batch: int, seq_len: int) -> str:
    """Return what of fresh tokens was not shown that is due, or ""."""
    if len(found["losses"]) < FRESH_STEPS:
        return f"{counted(len(found['losses']), 'step')} on fresh tokens, {FRESH_STEPS} are due"
    if found["tokens"] != batch * seq_len:
        return f"a step on {found['tokens']:,} fresh tokens, {batch * seq_len:,} are due"
    if str(seq_len - 1) not in found["changes"]:
        return "the last token was not edited"
    return ""


def reserved_gates(run: Recorded) -> list[GateResult]:
    """Judge the peak of reserved memory by the run's limit, and by the checklist's where that is another."""
    own_limit = run.parameter("reserved_limit_mib")
    own = GateResult("peak_reserved", own_limit is not None, NOT_RUN, limit=own_limit, unit="MiB")
    on_gpu = run.parameter("device") == "cuda"
    if own_limit is None:
        own = replace(own, detail="no peak is known for these sizes; reserved_limit_mib sets a limit")
    else:
        own = _reserved_gate(run, own, own_limit * CHECKLIST_FAIL_MIB / CHECKLIST_RESERVED_MIB)
    if own_limit == CHECKLIST_RESERVED_MIB and on_gpu:
        return [own]
    gpu = GateResult("peak_reserved_gpu", on_gpu, NOT_RUN, limit=CHECKLIST_RESERVED_MIB, unit="MiB")
    if not on_gpu:
        return [own, replace(gpu, detail="the checklist's limit is judged on a GPU only")]
    return [own, _reserved_gate(run, gpu, CHECKLIST_FAIL_MIB)]


def _reserved_gate(run: Recorded, gate: GateResult, fail_mib: float) -> GateResult:
    peaks = run.of("training")["peak_reserved_mib"].astype(float)
    if peaks.empty or peaks.isna().any():
        return replace(gate, outcome=NOT_RUN, detail="no step was recorded, or one without its figure")
    peak = float(peaks.max())
    outcome = PASS if peak <= gate.limit else WARN if peak <= fail_mib else FAIL
    detail = "" if run.parameter("device") == "cuda" else "simulated"
    margin = round(gate.limit - peak, 1)
    gate = replace(gate, outcome=outcome, measured=round(peak, 1), margin=margin, detail=detail)
    return unless_cut_short(gate, run.case("training"))


def trend_gate(run: Recorded, name: str, column: str, *, floor_mib: float) -> GateResult:
    """Judge that a per-step memory figure does not rise steadily after warm-up (`trend.judge_trend`).

    A retry or OOM of the allocator after warm-up is never a PASS: at the cap, reserved memory falls and hides the leak.
    """
    gate = GateResult(name, True, NOT_RUN, limit=10.0, unit="%")
    rows = run.of("training")
    trend = judge_trend(rows["step"].tolist(), rows[column].astype(float).tolist(), floor_mib=floor_mib)
    if trend.outcome == NOT_RUN:
        return replace(gate, detail=trend.detail)
    growth = round(100 * trend.growth, 2)
    gate = replace(gate, outcome=trend.outcome, measured=growth, margin=gate.limit - growth, detail=trend.detail)
    # From the last step of the warm-up on: the counters run from the start of the process.
    counters = rows[rows["step"] >= WARMUP_STEPS][["alloc_retries", "ooms"]].astype(float)
    retries, ooms = counters.max() - counters.min()
    if gate.outcome == PASS and counters.isna().any(axis=None):
        gate = replace(gate, outcome=NOT_RUN, detail="the allocator's retries and OOMs were not counted")
    elif gate.outcome == PASS and retries + ooms > 0:
        pressure = f"{retries:.0f} retries and {ooms:.0f} OOMs of the allocator after warm-up: it is at its cap"
        gate = replace(gate, outcome=WARN, detail=pressure)
    return unless_cut_short(gate, run.case("training"))


def operator_gate(run: Recorded) -> GateResult:
    """Judge that no operator is called more often late in the run than right after warm-up."""
    name = "operator_growth"
    if not run.parameter("profiler"):
        return GateResult(name, True, NOT_RUN, detail="switched off by profiler=False")
    case_id = "profiler" if run.parameter("device") == "cuda" else "training"
    return growth_gate(name, run.case(case_id), run.of(case_id))


def smoke_advice(run: Recorded) -> list[str]:
    """Return what a user may want to change; it never decides."""
    rows, said = run.of("training"), [*prediction_advice(run, ("training", "dense")), *selection_advice(run)]
    alloc_conf = str(run.parameter("alloc_conf"))
    if "expandable_segments:True" in alloc_conf and "max_split_size_mb" in alloc_conf:
        said.append(
            "The allocator line combines expandable_segments with max_split_size_mb, which can reserve many times what "
            "is allocated once blocks above the split size are freed; expandable_segments:True alone does not."
        )
    settled = rows.loc[rows["step"] > WARMUP_STEPS, ["reserved_mib", "active_mib", "tokens_per_s"]]
    if settled.empty:
        return said
    slack = ((settled["reserved_mib"] - settled["active_mib"]) / settled["reserved_mib"]).median()
    if 100 * slack > SLACK_PERCENT:
        said.append(f"Allocator slack is {100 * slack:.0f} % of reserved memory (advice from {SLACK_PERCENT} %).")
    trend = judge_trend(rows["step"].tolist(), rows["peak_reserved_mib"].tolist(), floor_mib=SEGMENT_MIB)
    if trend.outcome in (WARN, FAIL):
        left = steps_to_limit(rows["peak_reserved_mib"].iloc[-1], trend.slope_mib_per_step, CHECKLIST_FAIL_MIB)
        if left is not None:
            in_steps = counted(round(left), "step")
            said.append(f"At this slope {CHECKLIST_FAIL_MIB:,} MiB are reached in {in_steps}: restart before.")
    dense = run.of("dense")
    if len(dense) > WARMUP_STEPS:
        speed = settled["tokens_per_s"].median()
        yardstick = dense[dense["step"] > WARMUP_STEPS]["tokens_per_s"].median()
        said.append(
            f"{speed:,.0f} tokens/s; the same model with dense attention, in this run: {yardstick:,.0f} "
            f"tokens/s. The speed is {speed / yardstick:.2f}x that of dense."
        )
    return said


def smoke_headline(run: Recorded) -> str:
    """Return the figures that a smoke's verdict is said with."""
    steps = run.of("training")
    peak = "" if steps.empty else f", peak reserved {steps['peak_reserved_mib'].max():,.0f} MiB"
    return f"{counted(len(steps), 'step')} recorded{peak}"
