"""The gates of a backend contrast, passing, failing and not running, and what it recommends."""

import json
import re
from dataclasses import replace

import pytest

from nsa_lib.contract.agenda import RIGHT
from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.judgement.attestation import AREAS, GATES
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, verdict
from nsa_lib.subject.attention import BACKENDS
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS
from nsa_lib.workbook.backend_contrast import gates, measures
from nsa_lib.workbook.backend_contrast.figures import contrast_figures, contrast_table, operators_table
from nsa_lib.workbook.backend_contrast.gates import contrast_advice, contrast_gates, contrast_headline, recommended
from nsa_lib.workbook.run import record
from nsa_lib.worker.loop import run_to_result
from tests.made import routed, with_case
from tests.subject.test_config import CASE
from tests.workbook.backend_contrast.made import (
    ERRORS,
    NAN,
    PARTIAL,
    check,
    empty,
    ended,
    healthy,
    windows,
    with_error,
    with_model_ms,
    with_peaks,
    without,
    without_turns,
)

KINDS = ("ran", "route", "error", *GATES.values(), "unrecorded", "operator_growth")
"""Gates that each backend has."""

every_backend = pytest.mark.parametrize("backend", PLAIN_BACKENDS)


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


@pytest.mark.parametrize("profile", ["checklist", "laptop"])
def test_a_healthy_contrast_is_go_and_every_gate_passes(profile):
    found = contrast_gates(healthy(profile))
    assert verdict(found) == ("GO", [])
    assert {g.outcome for g in found} == {PASS}
    names = {f"{kind}_{name}" for kind in KINDS for name in PLAIN_BACKENDS}
    assert {g.name for g in found} == names | {"peak_spread", "distinct", "ran_dense", "timing", "allocator"}


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
    run = routed(healthy(), f"model_{backend}", *ran)
    found = gate(run, f"route_{backend}")
    assert (found.outcome, found.limit, found.measured) == (FAIL, backend, ", ".join(ran) or "none")


def test_a_wrong_route_fails_even_in_a_run_that_was_cut_short_and_a_right_one_does_not_pass():
    cut = with_case(healthy(), "model_packed", status="interrupted", reason="planted")
    assert gate(cut, "route_packed").outcome == NOT_RUN
    assert gate(routed(cut, "model_packed", "gather"), "route_packed").outcome == FAIL


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


@pytest.mark.parametrize("share", [0.5, 1.2])
def test_times_of_a_backend_that_no_other_clock_confirms_fail(share):
    steps = healthy().steps.copy()
    own = (steps["case_id"] == "timing") & (steps["backend"] == "gather")
    steps.loc[own, ["forward_ms", "backward_ms"]] *= share
    found = gate(replace(healthy(), steps=steps), "timing")
    assert found.outcome == FAIL
    assert found.detail.startswith("gather: ")
    assert "lie between two heartbeats" in found.detail


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


def entering(run, condition, routes):
    """Have the turns of a condition that were watched enter other backends."""
    steps = run.steps.copy()
    watched = steps.query("case_id == 'timing'").query(condition).dropna(subset="routes").index
    for place in watched:
        steps.at[place, "routes"] = routes
    return replace(run, steps=steps)


@pytest.mark.parametrize("subject", ["layer", "model"])
@pytest.mark.parametrize("routes", [["masked"], ["masked", "packed"], []])
def test_a_contestant_that_ran_another_backend_fails_the_timing(subject, routes):
    run = entering(healthy(), f"subject == '{subject}' and branches == 'all' and backend == 'packed'", routes)
    found = gate(run, "timing")
    assert found.outcome == FAIL
    assert f"what was timed as {subject} of packed at S=2,048 ran {', '.join(routes) or 'no backend'}" in found.detail


def test_a_contestant_of_no_backend_must_enter_none():
    assert gate(entering(healthy(), "branches == 'cmp'", ["masked"]), "timing").outcome == FAIL
    assert gate(entering(healthy(), "branches == 'dense'", ["masked"]), "timing").outcome == FAIL


def test_a_users_attention_may_be_made_of_our_backends_and_must_be_itself():
    mine = healthy("laptop", brings="attention")
    assert gate(entering(mine, "backend == 'own'", ["own", "packed"]), "timing").outcome == PASS
    assert gate(entering(mine, "backend == 'own'", ["packed"]), "timing").outcome == FAIL


def test_a_timing_whose_turns_tell_no_backend_did_not_run():
    found = gate(entering(healthy(), "backend == 'gather'", None), "timing")
    assert (found.outcome, "told no backend that it entered" in found.detail) == (NOT_RUN, True)


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
    assert {g.name for g in found} - plain == {f"{kind}_fused" for kind in KINDS}


def test_a_contrast_that_left_fused_out_where_it_can_run_is_incomplete():
    bare = replace(healthy(), info={**healthy().info, "backends": BACKEND_NAMES})
    assert verdict(contrast_gates(bare))[0] == "INCOMPLETE"
    assert {g.name: g.outcome for g in contrast_gates(bare) if g.outcome != PASS} == {
        **dict.fromkeys([f"{kind}_fused" for kind in KINDS], NOT_RUN),
        **dict.fromkeys(("peak_spread", "distinct", "allocator"), NOT_RUN),
    }


def test_fused_fails_by_its_own_gates_and_by_those_over_all():
    run = healthy(backends=BACKEND_NAMES)
    assert gate(ended(run, "model_fused", "failed"), "ran_fused").outcome == FAIL
    assert gate(routed(run, "model_fused", "masked"), "route_fused").outcome == FAIL
    assert gate(with_error(run, "fused", "selected_error", dk=0.3), "error_fused").outcome == FAIL
    assert gate(with_peaks(run, fused=800.0), "peak_spread").outcome == PASS, "it may need less"
    assert gate(with_peaks(run, fused=1200.0), "peak_spread").outcome == FAIL
    assert gate(with_peaks(run, fused=800.0, gather=1200.0), "peak_spread").outcome == FAIL
    assert gate(with_peaks(run, fused=NAN), "peak_spread").detail == "no peak of a whole run of fused"
    same = with_peaks(same_operators(run, "packed", "fused"), fused=1000.0)
    assert (gate(same, "distinct").outcome, "packed and fused" in gate(same, "distinct").detail) == (FAIL, True)
    assert gate(with_case(run, "model_fused", operators=NAN), "distinct").outcome == NOT_RUN


# What is recommended


def test_the_fastest_backend_is_recommended():
    assert recommended(healthy()) == "packed"
    assert recommended(with_model_ms(healthy(), masked=94.0)) == "masked"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda run: with_error(run, "packed", "selected_error", dq=0.3),
        lambda run: with_error(run, "packed", "attention_error", output=NAN),
        lambda run: routed(run, "model_packed", "gather"),
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
        "Use packed: it is right, and forward and backward of the model take 100 ms (masked 3x as long, gather 2x as "
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
        "Use packed: it is right, and forward and backward of the model take 100 ms; its peak is 1,000.0 MiB allocated."
    ]


# What a user brings that is no backend of NSA


def owed(name):
    return next(group for group, names in RIGHT.items() if name in names)


@pytest.mark.parametrize("brings", ["attention", "model"])
def test_what_is_hers_is_go_once_it_was_asked_whether_it_is_right(brings):
    found = {g.name: g for g in contrast_gates(healthy(brings=brings))}
    assert verdict(found.values()) == ("GO", [])
    assert {found[f"{name}_own"].outcome for names in RIGHT.values() for name in names} == {PASS}
    assert {name for name, g in found.items() if g.outcome == NOT_RUN} <= {
        f"{kind}_own" for kind in ("route", "error", *GATES.values())
    }


@pytest.mark.parametrize("name", [name for names in RIGHT.values() for name in names])
@pytest.mark.parametrize("brings", ["attention", "model"])
def test_hers_is_no_go_where_it_is_wrong_however_fast_it_is_and_incomplete_where_nobody_asked(brings, name):
    run = healthy(brings=brings)
    checks = [check(one, holds=one != name) for one in RIGHT[owed(name)]]
    wrong = contrast_gates(with_case(run, owed(name), checks=checks))
    word, reasons = verdict(wrong)
    assert (word, [reason.split()[0] for reason in reasons]) == ("NO-GO", [f"{name}_own"])
    assert verdict(contrast_gates(without(run, owed(name))))[0] == "INCOMPLETE"


@pytest.mark.parametrize("brings", ["attention", "model"])
def test_hers_is_named_beside_the_others_and_none_of_ours_is_recommended(brings):
    run = healthy(brings=brings)
    said = contrast_headline(run)
    assert said == (
        "mine.py:Mine: 25 ms forward and backward of the model (0.083x masked, 0.12x gather, 0.25x packed, 0.5x "
        "dense), 1,500.0 MiB peak allocated (masked 1,040.0, gather 1,020.0, packed 1,000.0, dense 900.0)"
    )
    advice = contrast_advice(run)
    assert advice[0] == f"{said}."
    assert not any("recommended" in line or "Use " in line for line in (said, *advice))


def test_a_kernel_of_hers_is_told_first_and_is_a_backend_to_choose():
    run = healthy(brings="backend")
    said = contrast_headline(run)
    assert said.startswith("mine.py:Mine: 25 ms forward and backward of the model (0.083x masked, ")
    assert contrast_advice(run)[:2] == [
        f"{said}.",
        "Use mine.py:Mine: it is right, and forward and backward of the model take 25 ms (masked 12x as long, gather "
        "8x as long, packed 4x as long, dense 2x as long); its peak is 1,500.0 MiB allocated (masked 1,040.0, gather "
        "1,020.0, packed 1,000.0, dense 900.0).",
    ]
    wrong = contrast_advice(with_error(run, "own", "selected_error", dq=0.3))
    assert wrong[0] == f"{said}."
    assert wrong[1].startswith("Use packed: it is right")
    assert "mine.py:Mine 0.25x as long" in wrong[1]


def test_dense_attention_that_was_asked_for_is_judged_and_told_and_never_replaced():
    run = healthy(attention="dense")
    found = {g.name: g for g in contrast_gates(run)}
    assert verdict(found.values()) == ("GO", [])
    kinds = ("ran", "future", "others", "self_error", "train_step", "unrecorded", "operator_growth")
    required = {name for name, g in found.items() if g.required and name.endswith("_dense")}
    assert required == {f"{kind}_dense" for kind in kinds}
    said = contrast_headline(run)
    assert said.startswith("dense: 50 ms forward and backward of the model (0.17x masked, 0.25x gather, 0.5x packed)")
    assert contrast_advice(run)[0] == f"{said}."
    assert not any("recommended" in line or "Use " in line for line in (said, *contrast_advice(run)))
    assert verdict(contrast_gates(ended(run, "model_dense", "oom")))[0] == "NO-GO"
    assert verdict(contrast_gates(without(run, "own_right")))[0] == "INCOMPLETE"


def test_a_gate_that_names_hers_names_what_she_brought():
    run = healthy(brings="backend")
    assert "mine.py:Mine 1,500.0 MiB" in gate(run, "peak_spread").detail
    same = with_peaks(same_operators(run, "packed", "own"), own=1000.0)
    assert gate(same, "distinct").detail == "same peak and same operators: packed and mine.py:Mine"
    assert gate(with_peaks(run, own=NAN), "peak_spread").detail == "no peak of a whole run of mine.py:Mine"
    steps = run.steps.copy()
    steps.loc[(steps["case_id"] == "timing") & (steps["backend"] == "own"), ["forward_ms", "backward_ms"]] *= 5
    assert gate(replace(run, steps=steps), "timing").detail.startswith("mine.py:Mine: ")


@pytest.mark.parametrize("brings", ["attention", "model", "backend"])
def test_no_chart_table_or_sentence_calls_hers_own(brings):
    run = healthy(brings=brings)
    figures = contrast_figures(run)
    shown = [*figures["speed"].data[0].y, *figures["model_speed"].data[0].y, *figures["memory"].data[0].y]
    shown += [trace.name for trace in figures["sweep"].data]
    for table in (contrast_table(measures.contrast_rows(run)), operators_table(measures.top_rows(run))):
        shown += [*table.header, *(cell.text for row in table.rows for cell in row)]
    shown += [contrast_headline(run), *contrast_advice(run)]
    shown += [str(said) for g in contrast_gates(run) for said in (g.limit, g.measured, g.detail)]
    assert [text for text in shown if "mine.py:Mine" in text]
    assert not [text for text in shown if re.search(r"\bown\b", text)]
    for drawn in (figures["model_speed"].data[0].y, figures["memory"].data[0].y):
        assert "mine.py:Mine" in drawn
    layers = [text for text in figures["speed"].data[0].y if "mine.py" in text]
    assert (
        layers
        == {
            "attention": ["mine.py:Mine"],
            "model": [],
            "backend": ["selected branch, mine.py:Mine", "all branches, mine.py:Mine"],
        }[brings]
    )


@pytest.mark.parametrize(("brings", "what"), [("attention", "a layer"), ("model", "the model")])
def test_where_hers_passes_dense_is_said_of_what_it_is(brings, what):
    assert measures.first_faster(healthy(brings=brings))["mine.py:Mine"] is not None
    (line,) = [line for line in contrast_advice(healthy(brings=brings)) if "is faster than dense" in line]
    assert line.startswith(f"{what.capitalize()} is faster than dense attention ")
    assert "with mine.py:Mine from S=" in line
    sweep = contrast_figures(healthy(brings=brings))["sweep"]
    assert {"model": "the whole model", "attention": "one layer"}[brings] in sweep.layout.title.text
    assert "mine.py:Mine" in [trace.name for trace in sweep.data]


def test_memory_of_another_attention_is_no_spread_of_the_backends():
    assert gate(healthy(brings="attention"), "peak_spread").measured == gate(healthy(), "peak_spread").measured
    assert "mine.py" not in gate(healthy(brings="attention"), "peak_spread").detail


# The whole way, from the worker to the gate


@pytest.fixture
def judged(tmp_path):
    """Run a tiny case of each given backend in this process and return the evidence of its run folder."""

    def judged(name, *backends, **changes):
        folder = tmp_path / name
        run = healthy("laptop", steps=CASE.steps, seq_len=CASE.seq_len)
        case_ids = [f"model_{backend}" for backend in backends]
        for backend, case_id in zip(backends, case_ids, strict=True):
            (folder / "cases" / case_id).mkdir(parents=True)
            case = replace(CASE, case_id=case_id, model=replace(CASE.model, backend=backend), check_attention=True,
                           compare_selected=True, **changes)  # fmt: skip
            (folder / "cases" / case_id / "case.json").write_text(case.to_json())
            run_to_result(folder / "cases" / case_id / "case.json")
        info = {**run.info, "schema": SCHEMA, "run_id": name, "case_ids": case_ids, "environment": {}}
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


@every_backend
@pytest.mark.parametrize("area", AREAS)
def test_a_backend_whose_recorded_steps_are_wrong_fails(backend, area):
    steps = [dict(step) for step in healthy().case(f"model_{backend}")["attestation"]]
    steps[-1]["wrong"] = {**steps[-1]["wrong"], area: {"layer 1 output": "relative error 0.3"}}
    run = with_case(healthy(), f"model_{backend}", attestation=steps)
    (found,) = [g for g in contrast_gates(run) if g.name == f"{GATES[area]}_{backend}"]
    assert (found.outcome, found.required) == (FAIL, True)
    assert "relative error 0.3" in found.detail
    assert recommended(run) != backend
