"""The frames of a backend contrast: times, memory, errors, operators, crossing points."""

from dataclasses import replace

import pandas as pd
import pytest

from nsa_lib.contract.agenda import DENSE, contestants
from nsa_lib.contract.case import WINDOW_STEPS
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS
from nsa_lib.workbook.backend_contrast import measures
from tests.made import routed, with_case
from tests.workbook.backend_contrast.made import ERRORS, NAN, empty, ended, healthy, with_error, without_turns


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


def test_the_route_shown_is_that_of_recorded_steps():
    run = with_case(healthy("laptop"), "model_packed", routes=["packed"])
    rows = measures.contrast_rows(routed(run, "model_packed", "packed", "gather")).set_index("backend")
    assert rows.loc["packed", "route"] == "gather, packed"
    rows = measures.contrast_rows(with_case(run, "model_packed", executed=None)).set_index("backend")
    assert pd.isna(rows.loc["packed", "route"])


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
    assert list(rows["backend"]) == list(rows["called"]) == [*PLAIN_BACKENDS, DENSE]
    assert rows.drop(columns=["backend", "called"]).isna().all(axis=None)


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
    assert on_gpu["masked"][0] == "add.Tensor 20\N{NO-BREAK SPACE}ms"
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


def test_the_operators_of_fused_are_told_apart_from_the_range_that_names_its_route():
    calls = {"nsa::choose_blocks": 12, "nsa::short_forward": 24, "nsa::selected::fused": 24, "short_forward": 24}
    found = {name: {"count": count, "self_device_ms": 1.0, "self_device_mib": 0.0} for name, count in calls.items()}
    counted = {"early": found, "late": found}
    run = with_case(healthy(backends=BACKEND_NAMES), "model_fused", operators=counted)
    assert measures.early_counts(run, "fused") == {"nsa::choose_blocks": 12, "nsa::short_forward": 24}
