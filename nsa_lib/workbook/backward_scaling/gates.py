"""The gates of the backward scaling, the checklist's quick verify, and its advice."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from nsa_lib.contract.figures import counted, step_time
from nsa_lib.judgement.allocator import allocator_gate
from nsa_lib.judgement.attestation import AREAS, attested_gate, replay_gate
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
)
from nsa_lib.judgement.prediction import predicted_cases, prediction_advice
from nsa_lib.runs.recorded import Recorded
from nsa_lib.workbook.backward_scaling.cases import TRAIN_LAYERS
from nsa_lib.workbook.backward_scaling.measures import (
    allocator_rows,
    exponent_rows,
    layer_rows,
    length_rows,
    predicted_peak_mib,
    slow_lengths,
)
from nsa_lib.workbook.profiles import SIZES_OF

RESERVED_LIMIT_MIB = {1024: 12_000, 2048: 20_000}
"""The checklist's "about 12/20 GB" at its long lengths, for the peak of reserved memory."""

MEMORY_EXPONENT_LIMIT = 1.1
"""Of the peak allocated without parameters and gradients: linear in the length, but for what a tile or chunk adds."""

KNOWN_PEAK_ALLOC_MIB = {
    ("checklist", "masked"): {128: 542.1, 512: 750.3, 1024: 1082.2, 2048: 1739.4},
    ("checklist", "packed"): {128: 542.1, 512: 750.5, 1024: 1022.6, 2048: 1380.1},
    ("checklist", "gather"): {128: 606.7, 512: 750.4, 1024: 1022.3, 2048: 1379.6},
    ("laptop", "masked"): {64: 13.9, 128: 19.3, 256: 34.6, 512: 71.9},
}
"""Peak allocated memory at each length, by profile and backend: on an H200 with torch 2.11, and on a CPU."""

KNOWN_HEADROOM = 1.25

RESERVED_RATIO = 1.25
"""Reserved over allocated memory, against the best setting's, from which a setting is advised against."""

SLOW_MS = 5_000


def scaling_gates(run: Recorded) -> list[GateResult]:
    """Return the gates of a backward scaling: each length, the train steps, the route, the exponents, known peaks."""
    return [
        *(length_gate(run, length) for length in run.parameter("seq_lens")),
        train_steps_gate(run),
        route_gate(run, run.info["case_ids"], "route"),
        *(
            attested_gate(run, f"s{length}", area, f"_{length}")
            for length in run.parameter("seq_lens")
            for area in AREAS
        ),
        *(replay_gate(run, f"s{length}", f"_{length}") for length in run.parameter("seq_lens")),
        allocator_cases_gate(run),
        allocator_gate(run, run.info["case_ids"]),
        *exponent_gates(run),
        known_peak_gate(run),
    ]


def length_gate(run: Recorded, length: int) -> GateResult:
    """Judge that forward and backward at a length finish, within the checklist's memory where it names one."""
    limit, name = RESERVED_LIMIT_MIB.get(length), f"backward_{length}"
    gate, done = GateResult(name, True, NOT_RUN, limit=limit, unit="MiB"), steps_gate(run, f"s{length}", name)
    if done.outcome != PASS:
        return replace(gate, outcome=done.outcome, detail=done.detail)
    steps = run.of(f"s{length}")
    peak = float(steps["peak_reserved_mib"].max())
    if math.isnan(peak):
        return replace(gate, detail="its memory was not recorded")
    iterations = steps[steps["phase"] == "step"]
    each_ms = steps["forward_ms"].median() + steps["backward_ms"].median()
    times = f"{counted(len(iterations), 'iteration')}, {step_time(each_ms)} each"
    within = limit is None or peak <= limit
    margin = None if limit is None else round(limit - peak, 1)
    return replace(gate, outcome=PASS if within else FAIL, measured=round(peak, 1), margin=margin, detail=times)


def train_steps_gate(run: Recorded) -> GateResult:
    """Judge that the smoke's own train step finishes with few layers."""
    gate = GateResult("train_steps", True, PASS, limit=len(TRAIN_LAYERS), unit="cases")
    cases = [run.case(f"train_{layers}") for layers in TRAIN_LAYERS]
    missing = [layers for layers, case in zip(TRAIN_LAYERS, cases, strict=True) if case is None]
    if missing:
        return replace(gate, outcome=NOT_RUN, detail=f"no case with {', '.join(map(str, missing))} layers was recorded")
    ended = [case for case in cases if ended_well(case)]
    gate = replace(gate, measured=len(ended), detail="; ".join(f"{c['case_id']} {how_it_ended(c)}" for c in cases))
    outcomes = {outcome_of(case) for case in cases if not ended_well(case)}
    return replace(gate, outcome=FAIL if FAIL in outcomes else NOT_RUN if outcomes else PASS)


def allocator_cases_gate(run: Recorded) -> GateResult:
    """Judge that every case under another allocator setting ended well, the smoke's own train step among them."""
    gate = GateResult("allocator_cases", True, NOT_RUN, unit="cases")
    cases = [case for case in map(run.case, run.info["case_ids"]) if case is not None]
    own = [case for case in cases if str(case["case_id"]).startswith(("backward_", "smoke_"))]
    if not own:
        return replace(gate, detail="no case was recorded")
    ended = [case for case in own if ended_well(case)]
    said = "; ".join(f"{case['case_id']} {how_it_ended(case)}" for case in own if not ended_well(case))
    gate = replace(gate, limit=len(own), measured=len(ended), detail=said)
    outcomes = {outcome_of(case) for case in own if not ended_well(case)}
    return replace(gate, outcome=FAIL if FAIL in outcomes else NOT_RUN if outcomes else PASS)


def exponent_gates(run: Recorded) -> list[GateResult]:
    """Judge how memory beyond parameters and gradients grows from each length to the next.

    Not required for `masked`, whose mask is quadratic by design, nor on a CPU, where lengths are so short that a query
    still reads most of what is before it.
    """
    hers = (run.info.get("on_trial") or {}).get("role") in ("attention", "model")  # no backend of ours is in it
    masked, on_gpu = run.parameter("backend") == "masked" and not hers, run.parameter("device") == "cuda"
    required = on_gpu and not masked
    excuse = "" if on_gpu else "not judged at the short lengths of a laptop"
    excuse = "not judged for masked, whose mask is quadratic by design" if masked else excuse
    measured = exponent_rows(run)
    found = {(row.first, row.last): row for row in measured[measured["quantity"] == "memory"].itertuples(index=False)}
    lengths = run.parameter("seq_lens")
    gates = []
    for pair in pairwise(lengths):
        gate = GateResult(f"memory_exponent_{pair[0]}_{pair[1]}", required, NOT_RUN, limit=MEMORY_EXPONENT_LIMIT)
        if pair not in found or not all(ended_well(run.case(f"s{length}")) for length in pair):
            gates.append(replace(gate, detail="a length did not come to its end"))
            continue
        exponent = round(found[pair].exponent, 3)
        outcome = PASS if exponent <= MEMORY_EXPONENT_LIMIT else FAIL
        margin = round(MEMORY_EXPONENT_LIMIT - exponent, 3)
        gates.append(replace(gate, outcome=outcome, measured=exponent, margin=margin, detail=excuse))
    return gates


def known_peak_gate(run: Recorded) -> GateResult:
    """Warn when a length needs much more memory than the same configuration did before."""
    gate = GateResult("known_peak", False, NOT_RUN, limit=100 * KNOWN_HEADROOM, unit="%")
    known = KNOWN_PEAK_ALLOC_MIB.get((run.info["profile"], run.parameter("backend")))
    if run.info["custom"] or known is None:
        return replace(gate, detail="no figure is kept for this configuration")
    lengths = length_rows(run)
    if len(lengths) < len(known):
        return replace(gate, detail="a length did not come to its end")
    shares = {row.seq_len: 100 * row.peak_alloc_mib / known[row.seq_len] for row in lengths.itertuples()}
    worst = max(shares, key=shares.get)
    detail = f"peak allocated against the kept figure, highest at S={worst} ({known[worst]:,.1f} MiB)"
    outcome = PASS if shares[worst] <= gate.limit else WARN
    margin = round(gate.limit - shares[worst], 1)
    return replace(gate, outcome=outcome, measured=round(shares[worst], 1), margin=margin, detail=detail)


def scaling_advice(run: Recorded) -> list[str]:
    """Return what a user may want to change or to expect; it never decides."""
    return [
        *_slow_advice(run),
        *_allocator_advice(run),
        *_prediction(run),
        *prediction_advice(run, predicted_cases(run)),
    ]


def _slow_advice(run: Recorded) -> list[str]:
    return [
        f"S={length} is slow, {ms / 1000:.1f} s an iteration; it was not hung, each iteration left its heartbeat."
        for length, ms in slow_lengths(run, SLOW_MS)
    ]


def _allocator_advice(run: Recorded) -> list[str]:
    rows, said = allocator_rows(run), []
    longest = f"backward at S={run.parameter('seq_lens')[-1]:,}"
    for work, what in (("backward", longest), ("smoke", "the smoke's train step")):
        settings = rows[rows["work"] == work] if len(rows) else rows
        if settings.empty or settings["peak_reserved_mib"].isna().all():
            continue
        best = settings.loc[settings["peak_reserved_mib"].idxmin()]
        for row in settings.itertuples():
            if row.peak_reserved_mib > RESERVED_RATIO * best["peak_reserved_mib"]:
                said.append(
                    f"Under {row.alloc_conf} {what} reserves {row.peak_reserved_mib:,.0f} MiB for "
                    f"{row.peak_alloc_mib:,.0f} MiB allocated; under {best['alloc_conf']} it reserves "
                    f"{best['peak_reserved_mib']:,.0f} MiB. Prefer the latter."
                )
    return said or (["No allocator setting reserves much more than another here."] if len(rows) else [])


def _prediction(run: Recorded) -> list[str]:
    layers = SIZES_OF[str(run.info["profile"])]["layers"]
    peak = predicted_peak_mib(layer_rows(run), layers)
    if peak is None:
        return []
    return [f"Predicted peak of the smoke with {counted(layers, 'layer')}: {peak:,.0f} MiB allocated."]


def scaling_headline(run: Recorded) -> str:
    """Return the figures that a scaling's verdict is said with."""
    rows = length_rows(run)
    if rows.empty:
        return "no length was measured"
    longest = rows.iloc[-1]
    return (
        f"forward and backward at S={longest['seq_len']:,.0f} in {longest['total_ms']:,.0f} ms, "
        f"peak allocated {longest['peak_alloc_mib']:,.0f} MiB"
    )
