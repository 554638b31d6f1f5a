"""Backend contrast: its cases, frames, gates passing, failing and not running, what it recommends, its charts."""

import json
from dataclasses import asdict, replace
from functools import cache

import pandas as pd
import pytest

from nsa_lib.contract.agenda import DENSE, WARMUP_ROUNDS, contestants
from nsa_lib.contract.case import FEWEST_STEPS, WINDOW_STEPS
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, verdict
from nsa_lib.runs.recorded import Recorded
from nsa_lib.subject.attention import BACKENDS
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS
from nsa_lib.workbook.backend_contrast import gates, measures
from nsa_lib.workbook.backend_contrast.cases import contrast_cases
from nsa_lib.workbook.backend_contrast.figures import contrast_figures
from nsa_lib.workbook.backend_contrast.gates import contrast_advice, contrast_gates, contrast_headline, recommended
from nsa_lib.workbook.run import record
from nsa_lib.worker.loop import run_to_result
from tests.made import made, resolved, with_case
from tests.subject.test_config import CASE

NAN = float("nan")

MODEL_MS = {"masked": 300.0, "gather": 200.0, "packed": 100.0, "fused": 40.0, DENSE: 50.0}

PEAK_MIB = {"masked": 1040.0, "gather": 1020.0, "packed": 1000.0, "fused": 990.0, DENSE: 900.0}

MM_CALLS = {"masked": 100, "gather": 200, "packed": 150, "fused": 80, DENSE: 50}
"""Calls of aten::mm in a step."""

ERRORS = {
    "attention_error": {"output": 1e-6, "gradient": 2e-6},
    "selected_error": {"output": 3e-6, "dq": 4e-6, "dk": 5e-6, "dv": 1e-6},
}

WITH_FUSED = {"triton": "3.6.0", "compute_capability": "8.0"}
"""Facts of a machine that can run it."""

LAYER_SHARE = 0.1
"""Time of one layer over that of the model."""

every_backend = pytest.mark.parametrize("backend", PLAIN_BACKENDS)


def requested(profile="checklist", **given):
    return resolved("backend_contrast", given, profile=profile)


def windows(backend, growth=1.0):
    """Return the operators of both windows; kernels and ranges stand among them, as in a profile."""
    mm = {"count": MM_CALLS[backend], "self_device_ms": 10.0, "self_device_mib": 1.0}
    add = {"count": 30, "self_device_ms": 20.0, "self_device_mib": 0.0}
    mm, add = ({name: WINDOW_STEPS * figure for name, figure in row.items()} for row in (mm, add))
    other = {f"nsa::selected::{backend}": {"count": 36}, "void kernel<float>(int)": {"count": 90}}
    early = {"aten::mm": mm, "aten::add.Tensor": add, **other}
    late = {**early, "aten::mm": {**mm, "count": round(growth * mm["count"])}}
    return {"early": early, "late": late}


def layer_ms(contestant):
    """Return the time of a layer: linear in the length, and that of dense attention quadratic."""
    base, at_2048 = LAYER_SHARE * MODEL_MS.get(contestant.backend, 20.0), contestant.seq_len / 2048
    return 4 * base * at_2048**2 if contestant.backend == DENSE else base * at_2048


def turns(run_field, rounds):
    """Return the beats of a timing: the middle counted round takes the time said, the others 2 ms more or less."""
    rows = []
    for number in range(WARMUP_ROUNDS + rounds):
        for contestant in run_field:
            ms = MODEL_MS[contestant.backend] if contestant.subject == "model" else layer_ms(contestant)
            counted = number - WARMUP_ROUNDS
            ms += 1000 if counted < 0 else 2 * ((counted % 2) - 0.5) * (counted > 0 or rounds % 2 == 0)
            phases = {"forward_ms": 0.25 * ms, "backward_ms": 0.75 * ms, "step_ms": ms}
            phase = "warmup" if counted < 0 else "step"
            rows.append({"case_id": "timing", "step": len(rows) + 1, "phase": phase, **asdict(contestant), **phases})
    return rows


def trained(backend, count):
    mib = PEAK_MIB[backend]
    return [
        {"case_id": f"model_{backend}", "step": step, "phase": "warmup" if step <= 10 else "step", "loss": 6.0,
         "step_ms": 100.0, "peak_alloc_mib": mib - (step == 1), "peak_reserved_mib": 1.1 * mib}
        for step in range(1, count + 1)
    ]  # fmt: skip


@cache
def healthy(profile="checklist", *, backends=PLAIN_BACKENDS, **given):
    """Return a contrast that is GO and recommends the last of its backends."""
    values = requested(profile, **given)
    cases, rows = [], []
    for case in contrast_cases(values, backends):
        facts = {}
        if case.work == "timing":
            rows += turns(contestants(case.seq_len, case.seq_lens, backends=backends), values["rounds"].value)
        else:
            backend = case.case_id.removeprefix("model_")
            rows += trained(backend, case.steps)
            facts = {"routes": [], "operators": windows(backend)}
            if backend != DENSE:
                facts |= {"routes": [backend], **ERRORS}
        cases.append({"case_id": case.case_id, "status": "ok", "reason": "", "steps_done": case.steps, **facts})
    info = {"notebook": "backend_contrast", "profile": profile,
            "environment": WITH_FUSED if "fused" in backends else {"torch": "2.11.0"}}  # fmt: skip
    return made(info, cases, rows, values, backends=backends)


# Changes: each returns a run that differs from the given one in one thing


def with_error(run, backend, field, **errors):
    return with_case(run, f"model_{backend}", **{field: {**ERRORS[field], **errors}})


def with_peaks(run, **peaks):
    steps = run.steps.copy()
    for backend, mib in peaks.items():
        steps.loc[steps["case_id"] == f"model_{backend}", "peak_alloc_mib"] = mib
    return replace(run, steps=steps)


def with_model_ms(run, **times):
    steps = run.steps.copy()
    for backend, ms in times.items():
        rows = (steps["subject"] == "model") & (steps["backend"] == backend) & (steps["phase"] == "step")
        steps.loc[rows, ["forward_ms", "backward_ms"]] = [ms / 4, 3 * ms / 4]
    return replace(run, steps=steps)


def without(run, *case_ids):
    cases, steps = (frame[~frame["case_id"].isin(case_ids)] for frame in (run.cases, run.steps))
    return replace(run, cases=cases, steps=steps)


def without_turns(run, condition):
    """Leave out turns of the timing that a query names."""
    return replace(run, steps=run.steps.drop(run.steps.query(f"case_id == 'timing' and {condition}").index))


def ended(run, case_id, status, steps=4):
    """End a case after some steps, before any of its facts was recorded."""
    late = (run.steps["case_id"] == case_id) & (run.steps["step"] > steps)
    lost = dict.fromkeys(("routes", "attention_error", "selected_error", "operators"), NAN)
    return with_case(
        replace(run, steps=run.steps[~late]), case_id, status=status, reason="planted", steps_done=steps, **lost
    )


def empty(run):
    return replace(run, cases=run.cases[:0], steps=run.steps[:0])


JUDGES = {
    "ran": gates.ran_gate,
    "route": gates.backend_route_gate,
    "error": gates.error_gate,
    "operator_growth": gates.operator_gate,
    "peak_spread": gates.peak_spread_gate,
    "distinct": gates.distinct_gate,
    "timing": gates.timing_gate,
}


def gate(run, name):
    """Judge one gate alone: all of them together take a while."""
    kind, _, backend = name.rpartition("_")
    found = JUDGES[kind](run, backend) if kind in JUDGES else JUDGES[name](run)
    assert found.name == name
    return found


# Cases


def test_each_model_has_a_case_of_its_own_and_all_timings_share_one():
    cases = {case.case_id: case for case in contrast_cases(requested(), PLAIN_BACKENDS)}
    assert list(cases) == ["model_masked", "model_gather", "model_packed", "model_dense", "timing"]
    for name in PLAIN_BACKENDS:
        case = cases[f"model_{name}"]
        assert (case.model.backend, case.model.attention, case.work) == (name, "nsa", "train")
        assert (case.check_attention, case.compare_selected, case.profile_operators) == (True, True, True)
    dense = cases["model_dense"]
    assert (dense.model.attention, dense.check_attention, dense.compare_selected) == (DENSE, False, False)
    assert {(case.model.layers, case.seq_len, case.steps) for name, case in cases.items() if name != "timing"} == {
        (12, 2048, 20)
    }


def test_where_fused_can_run_it_has_a_case_too_and_takes_its_turns():
    cases = {case.case_id: case for case in contrast_cases(requested(), BACKEND_NAMES)}
    assert list(cases) == [*(f"model_{name}" for name in BACKEND_NAMES), "model_dense", "timing"]
    fused = cases["model_fused"]
    assert (fused.model.backend, fused.check_attention, fused.compare_selected) == ("fused", True, True)
    assert cases["timing"].backends == BACKEND_NAMES
    field = contestants(2048, requested()["seq_lens"].value, backends=BACKEND_NAMES)
    assert cases["timing"].warmup_steps == len(field) * WARMUP_ROUNDS


@pytest.mark.parametrize("profile", ["checklist", "laptop"])
def test_the_timing_has_a_step_for_each_turn(profile):
    values = requested(profile)
    timing = contrast_cases(values, PLAIN_BACKENDS)[-1]
    count = len(contestants(values["seq_len"].value, values["seq_lens"].value, backends=PLAIN_BACKENDS))
    assert timing.work == "timing"
    assert timing.seq_lens == values["seq_lens"].value
    assert timing.steps == count * (WARMUP_ROUNDS + values["rounds"].value)
    assert timing.warmup_steps == count * WARMUP_ROUNDS


def test_too_few_steps_for_two_windows_count_no_operators():
    for steps, counts in ((FEWEST_STEPS - 1, False), (FEWEST_STEPS, True)):
        counted = [case.profile_operators for case in contrast_cases(requested(steps=steps), PLAIN_BACKENDS)]
        assert counted == [counts] * 4 + [False]


# Frames


def test_timing_rows_are_medians_and_quartiles_of_the_counted_rounds():
    run = healthy("laptop")
    rows = measures.timing_rows(run)
    expected = contestants(512, (128, 256, 512), backends=PLAIN_BACKENDS)
    assert list(rows[measures.TIMED].itertuples(index=False, name=None)) == [
        (c.subject, c.branches, c.backend, c.seq_len) for c in expected
    ]
    assert set(rows["rounds"]) == {3}
    model = rows.set_index(["subject", "backend"]).loc[("model", "gather")]
    assert (model["total_ms"], model["total_low_ms"], model["total_high_ms"]) == (200, 199.5, 200.5)
    assert (model["forward_ms"], model["backward_ms"]) == (50, 150)
    assert model["backward_high_ms"] - model["backward_low_ms"] == 0.75
    assert model["spread_percent"] == pytest.approx(0.5)


def test_a_turn_without_both_times_is_not_counted():
    run = healthy("laptop")
    steps = run.steps.copy()
    steps.loc[steps[steps["subject"] == "model"].index[-1], "backward_ms"] = NAN
    rows = measures.timing_rows(replace(run, steps=steps)).set_index(["subject", "backend"])
    assert rows.loc[("model", DENSE), "rounds"] == 2
    assert rows.loc[("model", "packed"), "rounds"] == 3


def test_contrast_rows_hold_speed_memory_operators_errors_and_route():
    rows = measures.contrast_rows(healthy("laptop")).set_index("backend")
    assert list(rows.index) == [*PLAIN_BACKENDS, DENSE]
    own = rows.loc["gather"]
    assert (own["total_ms"], own["ratio_to_dense"]) == (200, 4)
    assert own["peak_alloc_mib"] == 1020
    assert own["peak_reserved_mib"] == pytest.approx(1122)
    assert own["operators_per_step"] == 200 + 30
    assert (own["output_error"], own["gradient_error"]) == (3e-6, 5e-6)
    assert own["route"] == "gather"
    dense = rows.loc[DENSE]
    assert dense[["output_error", "gradient_error", "route"]].isna().all()
    assert dense["ratio_to_dense"] == 1


def test_an_error_that_is_nan_is_the_worst_wherever_it_stands():
    for field in ERRORS:
        run = with_error(healthy("laptop"), "packed", field, output=NAN)
        assert pd.isna(measures.contrast_rows(run).set_index("backend").loc["packed", "output_error"])
    run = with_error(healthy("laptop"), "packed", "selected_error", dk=NAN)
    assert pd.isna(measures.contrast_rows(run).set_index("backend").loc["packed", "gradient_error"])


def test_contrast_rows_of_an_empty_run_are_blank():
    rows = measures.contrast_rows(empty(healthy()))
    assert list(rows["backend"]) == [*PLAIN_BACKENDS, DENSE]
    assert rows.drop(columns="backend").isna().all(axis=None)


def test_top_operators_are_ranked_a_step_and_hold_no_kernels_or_ranges():
    run = healthy()
    by_time = measures.top_operators(run, "gather", "time")
    assert list(by_time["operator"]) == ["aten::add.Tensor", "aten::mm"]
    assert by_time["ms"].tolist() == [20, 10]
    by_memory = measures.top_operators(run, "gather", "memory")
    assert list(by_memory["operator"]) == ["aten::mm", "aten::add.Tensor"]
    assert by_memory["mib"].tolist() == [1, 0]
    by_calls = measures.top_operators(run, "gather", "calls", count=1)
    assert by_calls[["operator", "calls"]].values.tolist() == [["aten::mm", 200]]


def test_operators_that_were_only_counted_have_no_rank_by_time():
    counts = {when: {"aten::mm": {"count": 10 * WINDOW_STEPS}} for when in ("early", "late")}
    run = with_case(healthy("laptop"), "model_packed", operators=counts)
    assert measures.top_operators(run, "packed", "time").empty
    assert measures.top_operators(run, "packed", "calls")["calls"].tolist() == [10]
    assert measures.top_operators(ended(run, "model_packed", "oom"), "packed", "calls").empty


def test_top_rows_rank_by_time_and_memory_on_a_gpu_and_by_calls_on_a_cpu():
    on_gpu, on_cpu = measures.top_rows(healthy()), measures.top_rows(healthy("laptop"))
    assert list(on_gpu["by"]) == ["time", "time", "memory", "memory"]
    assert on_gpu["masked"][0] == "add.Tensor 20.00\N{NO-BREAK SPACE}ms"
    assert list(on_cpu["by"]) == ["calls", "calls"]
    assert on_cpu["gather"][0] == "mm 200\N{NO-BREAK SPACE}calls"
    cut = measures.top_rows(ended(healthy(), "model_gather", "oom"))
    assert set(cut["gather"]) == {""}
    assert measures.top_rows(empty(healthy())).empty


def test_the_crossing_is_the_length_from_which_a_backend_stays_faster_than_dense():
    # A layer takes S/2048 of 30, 20, 10 ms, and dense (S/2048)^2 of 20 ms.
    assert measures.first_faster(healthy()) == {"masked": 4096, "gather": 4096, "packed": 2048}


def test_a_backend_that_falls_behind_again_is_faster_only_from_the_last_crossing():
    run = healthy()
    steps = run.steps.copy()
    layer = (steps["subject"] == "layer") & (steps["branches"] == "all") & (steps["backend"] == "gather")
    steps.loc[layer & (steps["seq_len"] == 512), ["forward_ms", "backward_ms"]] = 1e-3
    steps.loc[layer & (steps["seq_len"] == 4096), ["forward_ms", "backward_ms"]] = 1e3
    assert measures.first_faster(replace(run, steps=steps))["gather"] is None
    steps.loc[layer & (steps["seq_len"] == 4096), ["forward_ms", "backward_ms"]] = 1e-3
    assert measures.first_faster(replace(run, steps=steps))["gather"] == 4096


def test_the_crossing_needs_dense_and_only_names_backends_that_were_timed():
    run = healthy()
    assert measures.first_faster(without_turns(run, "backend == 'dense'")) == {}
    assert measures.first_faster(empty(run)) == {}
    assert measures.first_faster(without_turns(run, "backend == 'masked'")) == {"gather": 4096, "packed": 2048}
    apart = without_turns(run, "backend == 'masked' and seq_len > 512")
    apart = without_turns(apart, "backend == 'dense' and seq_len <= 512")
    assert measures.first_faster(apart)["masked"] is None


# Gates


@pytest.mark.parametrize("profile", ["checklist", "laptop"])
def test_a_healthy_contrast_is_go_and_every_gate_passes(profile):
    found = contrast_gates(healthy(profile))
    assert verdict(found) == ("GO", [])
    assert {g.outcome for g in found} == {PASS}
    kinds = ("ran", "route", "error", "operator_growth")
    names = {f"{kind}_{name}" for kind in kinds for name in PLAIN_BACKENDS}
    assert {g.name for g in found} == names | {"peak_spread", "distinct", "ran_dense", "timing"}


def test_a_contrast_without_any_case_did_not_run():
    found = contrast_gates(empty(healthy()))
    assert {g.outcome for g in found} == {NOT_RUN}
    assert verdict(found)[0] == "INCOMPLETE"


@every_backend
@pytest.mark.parametrize("status", ["failed", "oom", "nan", "stalled", "timeout", "crashed"])
def test_a_backend_that_does_not_come_to_its_end_fails(backend, status):
    run = ended(healthy(), f"model_{backend}", status)
    found = gate(run, f"ran_{backend}")
    assert (found.outcome, found.measured, found.detail) == (FAIL, 4, f"{status}: planted")
    assert gate(run, f"operator_growth_{backend}").outcome == FAIL
    for name in ("route", "error"):
        assert gate(run, f"{name}_{backend}").outcome == NOT_RUN


@every_backend
@pytest.mark.parametrize("status", ["interrupted", "unavailable"])
def test_a_backend_that_was_interrupted_did_not_run(backend, status):
    run = ended(healthy(), f"model_{backend}", status)
    for name in ("ran", "route", "error", "operator_growth"):
        assert gate(run, f"{name}_{backend}").outcome == NOT_RUN


@pytest.mark.parametrize(("status", "word"), [("oom", "NO-GO"), ("interrupted", "INCOMPLETE")])
def test_one_backend_that_is_cut_short_decides_and_leaves_nothing_to_compare(status, word):
    found = contrast_gates(ended(healthy(), "model_gather", status))
    assert {g.name: g.outcome for g in found if g.name in ("peak_spread", "distinct")} == {
        "peak_spread": NOT_RUN,
        "distinct": NOT_RUN,
    }
    assert verdict(found)[0] == word


@every_backend
def test_a_backend_without_a_case_did_not_run(backend):
    run = without(healthy(), f"model_{backend}")
    for name in ("ran", "route", "error", "operator_growth"):
        assert gate(run, f"{name}_{backend}").outcome == NOT_RUN


@every_backend
def test_a_missing_step_fails(backend):
    run = healthy()
    lost = (run.steps["case_id"] == f"model_{backend}") & (run.steps["step"] == 7)
    assert gate(replace(run, steps=run.steps[~lost]), f"ran_{backend}").outcome == FAIL


def test_dense_is_shown_and_decides_nothing():
    run = ended(healthy(), "model_dense", "oom")
    assert (gate(run, "ran_dense").outcome, gate(run, "ran_dense").required) == (FAIL, False)
    assert verdict(contrast_gates(run))[0] == "GO"
    assert gate(without(healthy(), "model_dense"), "ran_dense").outcome == NOT_RUN


@every_backend
@pytest.mark.parametrize("ran", [[], ["other"], ["gather", "packed"]])
def test_another_route_fails(backend, ran):
    run = with_case(healthy(), f"model_{backend}", routes=ran)
    found = gate(run, f"route_{backend}")
    assert (found.outcome, found.limit, found.measured) == (FAIL, backend, ", ".join(ran) or "none")


def test_a_wrong_route_fails_even_in_a_run_that_was_cut_short_and_a_right_one_does_not_pass():
    cut = with_case(healthy(), "model_packed", status="interrupted", reason="planted")
    assert gate(cut, "route_packed").outcome == NOT_RUN
    assert gate(with_case(cut, "model_packed", routes=["gather"]), "route_packed").outcome == FAIL


@every_backend
@pytest.mark.parametrize(("field", "name"), [(field, name) for field, errors in ERRORS.items() for name in errors])
@pytest.mark.parametrize("wrong", [0.3, NAN])
def test_each_error_above_the_limit_and_nan_fails(backend, field, name, wrong):
    assert gate(with_error(healthy(), backend, field, **{name: wrong}), f"error_{backend}").outcome == FAIL


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 0.05), ("float32", 0.01)])
def test_the_limit_of_the_errors_is_that_of_the_dtype(dtype, limit):
    run = healthy(dtype=dtype)
    for error, outcome in ((limit, PASS), (1.01 * limit, FAIL)):
        found = gate(with_error(run, "packed", "selected_error", dv=error), "error_packed")
        assert (found.outcome, found.limit) == (outcome, limit)


@pytest.mark.parametrize("field", list(ERRORS))
def test_errors_that_were_not_all_compared_did_not_run(field):
    assert gate(with_case(healthy(), "model_gather", **{field: NAN}), "error_gather").outcome == NOT_RUN
    cut = with_case(healthy(), "model_gather", status="interrupted", reason="planted")
    assert gate(cut, "error_gather").outcome == NOT_RUN
    assert gate(with_error(cut, "gather", field, output=0.3), "error_gather").outcome == FAIL


@every_backend
def test_operators_that_grow_fail_and_uncounted_ones_did_not_run(backend):
    grown = with_case(healthy(), f"model_{backend}", operators=windows(backend, growth=1.1))
    found = gate(grown, f"operator_growth_{backend}")
    assert (found.outcome, found.measured) == (FAIL, 1)
    assert "aten::mm" in found.detail
    uncounted = with_case(healthy(), f"model_{backend}", operators=NAN)
    assert gate(uncounted, f"operator_growth_{backend}").outcome == NOT_RUN


@pytest.mark.parametrize(("profile", "word"), [("checklist", "NO-GO"), ("laptop", "GO")])
def test_peaks_far_apart_fail_where_it_is_required(profile, word):
    run = with_peaks(healthy(profile), masked=1101.0)
    found = gate(run, "peak_spread")
    assert (found.outcome, found.required, found.measured) == (FAIL, word == "NO-GO", 10.1)
    assert found.margin == -0.1
    assert verdict(contrast_gates(run))[0] == word
    assert gate(with_peaks(run, masked=1100.0), "peak_spread").outcome == PASS


def test_the_spread_leaves_dense_out_and_needs_every_backend():
    assert gate(with_peaks(healthy(), dense=9000.0), "peak_spread").outcome == PASS
    for run in (with_peaks(healthy(), gather=NAN), ended(healthy(), "model_gather", "interrupted", steps=20)):
        found = gate(run, "peak_spread")
        assert (found.outcome, found.detail) == (NOT_RUN, "no peak of a whole run of gather")


def same_operators(run, first, second):
    return with_case(run, f"model_{second}", operators=run.case(f"model_{first}")["operators"])


def test_two_backends_with_one_peak_and_one_set_of_operators_fail():
    run = with_peaks(same_operators(healthy(), "gather", "packed"), packed=1020.0, gather=1020.0)
    found = gate(run, "distinct")
    assert (found.outcome, found.measured) == (FAIL, 1)
    assert "gather and packed" in found.detail
    assert gate(without(run, "model_masked"), "distinct").outcome == FAIL


def test_backends_that_share_only_a_peak_or_only_operators_are_distinct():
    assert gate(same_operators(healthy(), "gather", "packed"), "distinct").outcome == PASS
    assert gate(with_peaks(healthy(), packed=1020.0, gather=1020.0), "distinct").outcome == PASS


def test_backends_are_not_called_distinct_without_peak_or_operators():
    for run in (
        with_case(healthy(), "model_packed", operators=NAN),
        with_peaks(healthy(), packed=NAN),
        without(healthy(), "model_packed"),
    ):
        assert gate(run, "distinct").outcome == NOT_RUN


def test_a_contestant_without_all_its_rounds_fails_the_timing():
    whole = gate(healthy(), "timing")
    assert (whole.outcome, whole.measured) == (PASS, whole.limit)
    for condition in ("step == step.max()", "branches == 'cmp'", "subject == 'model' and backend == 'packed'"):
        found = gate(without_turns(healthy(), condition), "timing")
        assert (found.outcome, found.measured) == (FAIL, whole.limit - 1)


@pytest.mark.parametrize(("status", "outcome"), [("oom", FAIL), ("stalled", FAIL), ("interrupted", NOT_RUN)])
def test_a_timing_that_was_cut_short_never_passes(status, outcome):
    assert gate(ended(healthy(), "timing", status, steps=60), "timing").outcome == outcome
    assert gate(ended(healthy(), "timing", status, steps=10**6), "timing").outcome == outcome
    assert gate(without(healthy(), "timing"), "timing").outcome == NOT_RUN


# Where fused can run


def test_with_fused_a_healthy_contrast_is_go_and_has_its_gates():
    found = contrast_gates(healthy(backends=BACKEND_NAMES))
    assert verdict(found) == ("GO", [])
    plain = {g.name for g in contrast_gates(healthy())}
    assert {g.name for g in found} - plain == {f"{k}_fused" for k in ("ran", "route", "error", "operator_growth")}


def test_a_contrast_that_left_fused_out_where_it_can_run_is_incomplete():
    bare = replace(healthy(), info={**healthy().info, "backends": BACKEND_NAMES})
    assert verdict(contrast_gates(bare))[0] == "INCOMPLETE"
    assert {g.name: g.outcome for g in contrast_gates(bare) if g.outcome != PASS} == {
        **dict.fromkeys(("ran_fused", "route_fused", "error_fused", "operator_growth_fused"), NOT_RUN),
        **dict.fromkeys(("peak_spread", "distinct"), NOT_RUN),
    }


def test_fused_fails_by_its_own_gates_and_by_those_over_all():
    run = healthy(backends=BACKEND_NAMES)
    assert gate(ended(run, "model_fused", "failed"), "ran_fused").outcome == FAIL
    assert gate(with_case(run, "model_fused", routes=["masked"]), "route_fused").outcome == FAIL
    assert gate(with_error(run, "fused", "selected_error", dk=0.3), "error_fused").outcome == FAIL
    assert gate(with_peaks(run, fused=800.0), "peak_spread").outcome == PASS, "it may need less"
    assert gate(with_peaks(run, fused=1200.0), "peak_spread").outcome == FAIL
    assert gate(with_peaks(run, fused=800.0, gather=1200.0), "peak_spread").outcome == FAIL
    assert gate(with_peaks(run, fused=NAN), "peak_spread").detail == "no peak of a whole run of fused"
    same = with_peaks(same_operators(run, "packed", "fused"), fused=1000.0)
    assert (gate(same, "distinct").outcome, "packed and fused" in gate(same, "distinct").detail) == (FAIL, True)
    assert gate(with_case(run, "model_fused", operators=NAN), "distinct").outcome == NOT_RUN


def test_fused_stands_in_every_frame_table_and_chart():
    run = healthy(backends=BACKEND_NAMES)
    assert recommended(run) == "fused"
    assert list(measures.contrast_rows(run)["backend"]) == [*BACKEND_NAMES, DENSE]
    assert list(measures.top_rows(run).columns) == ["by", *BACKEND_NAMES, DENSE]
    assert measures.first_faster(run)["fused"] == 512
    figures = contrast_figures(run)
    assert names(figures["sweep"]) == [*BACKEND_NAMES, DENSE]
    assert "selected branch, fused" in figures["speed"].data[0].y


def test_the_operators_of_fused_are_told_apart_from_the_range_that_names_its_route():
    calls = {"nsa::choose_blocks": 12, "nsa::short_forward": 24, "nsa::selected::fused": 24, "short_forward": 24}
    found = {name: {"count": count, "self_device_ms": 1.0, "self_device_mib": 0.0} for name, count in calls.items()}
    counted = {"early": found, "late": found}
    run = with_case(healthy(backends=BACKEND_NAMES), "model_fused", operators=counted)
    assert measures.early_counts(run, "fused") == {"nsa::choose_blocks": 12, "nsa::short_forward": 24}


# What is recommended


def test_the_fastest_backend_is_recommended():
    assert recommended(healthy()) == "packed"
    assert recommended(with_model_ms(healthy(), masked=94.0)) == "masked"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda run: with_error(run, "packed", "selected_error", dq=0.3),
        lambda run: with_error(run, "packed", "attention_error", output=NAN),
        lambda run: with_case(run, "model_packed", routes=["gather"]),
        lambda run: with_case(run, "model_packed", operators=windows("packed", growth=2)),
        lambda run: ended(run, "model_packed", "oom"),
        lambda run: ended(run, "model_packed", "interrupted"),
        lambda run: without_turns(run, "subject == 'model' and backend == 'packed'"),
    ],
)
def test_correctness_beats_speed(wrong):
    assert recommended(wrong(healthy())) == "gather"


def test_speed_beats_memory():
    assert recommended(with_peaks(healthy(), packed=5000.0)) == "packed"
    assert recommended(with_peaks(with_model_ms(healthy(), gather=106.0), packed=5000.0)) == "packed"


def test_memory_decides_between_speeds_within_five_percent():
    near = with_model_ms(healthy(), gather=104.0, masked=104.9)
    assert recommended(near) == "packed"
    assert recommended(with_peaks(near, packed=1030.0)) == "gather"
    assert recommended(with_peaks(near, packed=1030.0, masked=1000.0)) == "masked"


def test_speed_decides_between_equal_memory():
    near = with_peaks(with_model_ms(healthy(), gather=104.0), packed=1000.0, gather=1000.0)
    assert recommended(near) == "packed"


def test_none_is_recommended_when_none_is_right():
    run = healthy()
    for backend in PLAIN_BACKENDS:
        run = with_error(run, backend, "selected_error", dk=0.5)
    assert recommended(run) is None
    assert contrast_headline(run) == "no backend can be recommended"
    assert contrast_advice(run)[0].startswith("No backend can be recommended")


def test_dense_is_never_recommended():
    run = without(healthy(), *(f"model_{backend}" for backend in PLAIN_BACKENDS))
    assert recommended(run) is None


def test_advice_says_which_backend_and_why_and_where_each_passes_dense():
    said = contrast_advice(healthy())
    assert said == [
        "Use packed: it is right, and forward and backward of the model take 100.0 ms (masked 3x as long, gather 2x as "
        "long, dense 0.5x as long); its peak is 1,000.0 MiB allocated (masked 1,040.0, gather 1,020.0, dense 900.0).",
        "A layer is faster than dense attention with masked from S=4,096 on, with gather from S=4,096 on, with packed "
        "from S=2,048 on.",
    ]
    slower = contrast_advice(without_turns(healthy(), "seq_len == 4096"))
    assert slower[1:] == [
        "A layer is faster than dense attention with packed from S=2,048 on.",
        "Not faster than dense attention at any length measured: a layer with masked, gather.",
    ]


def test_the_headline_names_the_backend_its_time_and_the_spread():
    assert contrast_headline(healthy()) == (
        "packed recommended: 100 ms forward and backward of the model (masked 3x as long, gather 2x as long), "
        "memory peaks within 4.0 % of each other"
    )


PARTIAL = {
    "nothing": empty,
    "no_timing": lambda run: without(run, "timing"),
    "only_timing": lambda run: without(run, *(f"model_{name}" for name in (*PLAIN_BACKENDS, DENSE))),
    "one_backend": lambda run: without_turns(
        without(run, "model_masked", "model_gather", "model_dense"), "backend != 'packed'"
    ),
    "no_dense": lambda run: without_turns(without(run, "model_dense"), "backend == 'dense'"),
    "cut_in_warmup": lambda run: ended(run, "timing", "interrupted", steps=3),
    "all_oom": lambda run: ended(
        ended(ended(run, "model_masked", "oom"), "model_gather", "oom"), "model_packed", "oom"
    ),
    "no_memory": lambda run: with_peaks(run, masked=NAN, gather=NAN, packed=NAN, dense=NAN),
}


@pytest.mark.parametrize("cut", list(PARTIAL))
def test_what_is_missing_is_read_without_a_traceback(cut):
    run = PARTIAL[cut](healthy())
    assert verdict(contrast_gates(run))[0] in ("INCOMPLETE", "NO-GO")
    assert all("nan" not in sentence for sentence in [contrast_headline(run), *contrast_advice(run)])
    assert set(contrast_figures(run)) == {"speed", "model_speed", "sweep", "memory"}
    measures.top_rows(run)


def test_one_backend_alone_is_recommended_without_a_comparison():
    run = PARTIAL["one_backend"](healthy())
    assert contrast_headline(run) == "packed recommended: 100 ms forward and backward of the model"
    assert contrast_advice(run) == [
        "Use packed: it is right, and forward and backward of the model take 100.0 ms; its peak is 1,000.0 MiB "
        "allocated."
    ]


# Charts


BRANCHES_OF_A_BACKEND = ("selected branch", "all branches")


def names(figure):
    return [trace.name for trace in figure.data]


def test_the_charts_of_a_whole_run_name_every_contestant():
    figures = contrast_figures(healthy())
    assert names(figures["speed"]) == names(figures["model_speed"]) == ["forward", "backward"]
    assert names(figures["sweep"]) == [*PLAIN_BACKENDS, DENSE]
    assert names(figures["memory"]) == ["peak allocated", "peak reserved"]
    assert list(figures["memory"].data[0].y) == [*PLAIN_BACKENDS, DENSE]
    selected, whole = ([f"{branches}, {name}" for name in PLAIN_BACKENDS] for branches in BRANCHES_OF_A_BACKEND)
    alone = ["compressed branch", "sliding branch"]
    assert list(figures["speed"].data[0].y) == [*selected, *alone, *whole, "dense attention"]
    assert list(figures["model_speed"].data[0].y) == [*PLAIN_BACKENDS, "dense attention"]
    assert figures["sweep"].layout.yaxis.title.text == "ms"
    units = [figures[name].layout.xaxis.title.text for name in ("speed", "model_speed", "memory")]
    assert units == ["ms, logarithmic", "ms, logarithmic", "MiB"]
    assert "packed from S=2,048" in figures["sweep"].layout.title.subtitle.text
    assert "by the backends: within 4.0 % of each other" in figures["memory"].layout.title.subtitle.text


@pytest.mark.parametrize("name", ["speed", "model_speed", "memory"])
def test_every_row_of_a_chart_has_its_name_and_room_for_its_figures(name):
    figure = contrast_figures(healthy())[name]
    rows = list(figure.data[0].y)
    assert list(figure.layout.yaxis.tickvals) == list(figure.layout.yaxis.categoryarray) == rows
    assert list(figure.layout.yaxis.range) == [len(rows) - 0.5, -0.5]  # the first on top
    assert figure.layout.height >= 40 * len(rows)
    if name != "memory":  # figures stand on either side of the line that whiskers lie on
        assert [trace.textposition for trace in figure.data] == ["top center", "bottom center"]


def test_points_show_medians_and_whiskers_reach_the_quartiles():
    forward, backward = contrast_figures(healthy("laptop"))["model_speed"].data
    assert list(forward.x) == [75, 50, 25, 12.5]
    assert list(backward.error_x.array) == list(backward.error_x.arrayminus) == [0.375] * 4


def test_the_run_is_measured_once_for_gates_advice_and_charts(monkeypatch):
    run, seen = replace(healthy()), []
    of = Recorded.of
    monkeypatch.setattr(Recorded, "of", lambda run, case_id: seen.append(case_id) or of(run, case_id))
    contrast_gates(run), contrast_headline(run), contrast_advice(run), contrast_figures(run)
    assert seen.count("timing") == seen.count(f"model_{DENSE}") - 1 == 1  # a gate counts the steps of each model
    assert measures.timing_rows(replace(run, steps=run.steps[:0])).empty


def test_a_run_cut_short_draws_what_is_there():
    figures = contrast_figures(PARTIAL["one_backend"](healthy()))
    assert names(figures["sweep"]) == ["packed"]
    assert figures["sweep"].layout.title.subtitle.text == "forward and backward; dense was not timed"
    assert list(figures["memory"].data[0].y) == ["packed"]
    assert figures["memory"].layout.title.subtitle.text == "a process each"


def test_an_empty_run_draws_empty_charts_that_say_so():
    figures = contrast_figures(empty(healthy()))
    assert all(not figure.data for figure in figures.values())
    assert {f.layout.title.subtitle.text for f in figures.values()} == {"nothing timed", "no steps recorded"}


# The whole way, from the worker to the gate


@pytest.fixture
def judged(tmp_path):
    """Run a tiny case of each given backend in this process and return the evidence of its run folder."""

    def judged(name, *backends, **changes):
        folder = tmp_path / name
        run = healthy("laptop", steps=CASE.steps, seq_len=CASE.seq_len)
        case_ids = [f"model_{backend}" for backend in backends]
        for backend, case_id in zip(backends, case_ids):
            (folder / "cases" / case_id).mkdir(parents=True)
            case = replace(CASE, case_id=case_id, model=replace(CASE.model, backend=backend), check_attention=True,
                           compare_selected=True, **changes)  # fmt: skip
            (folder / "cases" / case_id / "case.json").write_text(case.to_json())
            run_to_result(folder / "cases" / case_id / "case.json")
        info = {**run.info, "schema": 1, "run_id": name, "case_ids": case_ids, "environment": {}}
        (folder / "run.json").write_text(json.dumps(info))
        return record(folder)

    return judged


def test_packed_bound_to_gather_fails_its_route_and_nothing_else_shows_it(judged, monkeypatch):
    monkeypatch.setitem(BACKENDS, "packed", BACKENDS["gather"])
    run = judged("bound", "gather", "packed")
    assert gate(run, "route_gather").outcome == PASS
    found = gate(run, "route_packed")
    assert (found.outcome, found.measured, found.required) == (FAIL, "gather", True)
    for name in ("ran_gather", "ran_packed", "error_gather", "error_packed"):
        assert gate(run, name).outcome == PASS


def test_packed_itself_passes_its_route(judged):
    run = judged("right", "packed")
    assert (gate(run, "route_packed").outcome, gate(run, "error_packed").outcome) == (PASS, PASS)


def test_a_planted_wrong_backend_fails_route_and_a_planted_wrong_mask_fails_error(judged):
    assert gate(judged("route", "packed", fault="wrong_backend"), "route_packed").outcome == FAIL
    run = judged("mask", "packed", fault="first_key")
    assert (gate(run, "route_packed").outcome, gate(run, "error_packed").outcome) == (PASS, FAIL)
