"""The gates of a backward scaling, and its advice."""

from dataclasses import replace

import pytest

from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, verdict
from nsa_lib.workbook.backward_scaling.figures import scaling_figures
from nsa_lib.workbook.backward_scaling.gates import (
    KNOWN_PEAK_ALLOC_MIB,
    scaling_advice,
    scaling_gates,
    scaling_headline,
)
from nsa_lib.workbook.profiles import CHECKLIST_ALLOC_CONF
from tests.made import routed, with_case
from tests.workbook.backward_scaling.made import ended, healthy, known, without


def gate(run, name):
    (found,) = [gate for gate in scaling_gates(run) if gate.name == name]
    return found


@pytest.mark.parametrize("profile", ["checklist", "laptop"])
@pytest.mark.parametrize("backend", ["masked", "gather", "packed"])
def test_a_healthy_scaling_is_go(profile, backend):
    run = healthy(profile, backend=backend)
    gates = [g for g in scaling_gates(run) if g.name != "known_peak"]
    assert verdict(gates) == ("GO", []), gates
    assert {g.outcome for g in gates} == {PASS}


@pytest.mark.parametrize("status", ["failed", "oom", "nan", "stalled", "timeout", "crashed"])
def test_a_length_that_does_not_finish_fails(status):
    run = ended(healthy(), "s2048", status, steps=4)
    assert gate(run, "backward_2048").outcome == FAIL
    assert gate(run, "memory_exponent_1024_2048").outcome == NOT_RUN
    assert verdict(scaling_gates(run))[0] == "NO-GO"


@pytest.mark.parametrize("status", ["interrupted", "unavailable"])
def test_a_length_that_could_not_be_measured_did_not_run(status):
    run = ended(healthy(), "s512", status, steps=2)
    assert gate(run, "backward_512").outcome == NOT_RUN
    assert gate(without(healthy(), "s512"), "backward_512").outcome == NOT_RUN
    assert verdict(scaling_gates(run))[0] == "INCOMPLETE"


def test_a_length_with_missing_iterations_fails_and_one_without_memory_did_not_run():
    run = healthy()
    assert gate(replace(run, steps=run.steps[run.steps["step"] != 13]), "backward_2048").outcome == FAIL
    blank = run.steps.assign(peak_reserved_mib=float("nan"))
    assert gate(replace(run, steps=blank), "backward_2048").outcome == NOT_RUN


@pytest.mark.parametrize(("length", "limit"), [(1024, 12_000), (2048, 20_000)])
def test_a_long_length_above_the_checklists_memory_fails(length, limit):
    run = healthy()
    for mib, outcome in ((limit, PASS), (limit + 1, FAIL)):
        steps = run.steps.copy()
        steps.loc[steps["case_id"] == f"s{length}", "peak_reserved_mib"] = float(mib)
        assert gate(replace(run, steps=steps), f"backward_{length}").outcome == outcome


def test_the_train_steps_fail_with_one_that_fails_and_do_not_run_without_one():
    assert gate(ended(healthy(), "train_3", "oom"), "train_steps").outcome == FAIL
    assert gate(ended(healthy(), "train_3", "interrupted"), "train_steps").outcome == NOT_RUN
    assert gate(without(healthy(), "train_5"), "train_steps").outcome == NOT_RUN


def test_another_route_in_one_case_fails_and_an_unseen_one_did_not_run():
    run = healthy(backend="packed")
    assert gate(run, "route").outcome == PASS
    assert gate(routed(run, "s512", "gather"), "route").outcome == FAIL
    assert gate(routed(run, "s512"), "route").outcome == FAIL
    assert gate(with_case(run, "s512", executed=None), "route").outcome == NOT_RUN


@pytest.mark.parametrize(("status", "outcome"), [("oom", FAIL), ("unavailable", NOT_RUN)])
@pytest.mark.parametrize("case_id", ["backward_default", "smoke_both"])
def test_a_case_under_another_allocator_setting_that_ends_badly_decides(case_id, status, outcome):
    run = ended(healthy(), case_id, status)
    assert (gate(run, "allocator_cases").outcome, gate(run, "allocator_cases").required) == (outcome, True)
    assert case_id in gate(run, "allocator_cases").detail


@pytest.mark.parametrize(
    ("profile", "backend", "word"),
    [("checklist", "masked", "GO"), ("checklist", "gather", "NO-GO"), ("laptop", "gather", "GO")],
)
def test_memory_that_grows_faster_than_the_length_fails_where_it_is_required(profile, backend, word):
    run = healthy(profile, exponent=1.2, backend=backend)
    first, last = run.parameter("seq_lens")[-2:]
    found = gate(run, f"memory_exponent_{first}_{last}")
    assert (found.outcome, found.required) == (FAIL, word == "NO-GO")
    judged = [g for g in scaling_gates(run) if g.name != "known_peak"]
    assert verdict(judged)[0] == word


def test_what_a_user_brings_is_not_excused_by_the_mask_of_a_backend_that_it_does_not_run():
    run = healthy("checklist", exponent=1.2, backend="masked")
    hers = replace(run, info={**run.info, "on_trial": {"role": "attention"}})
    kernel = replace(run, info={**run.info, "on_trial": {"role": "backend"}})
    found = [gate(one, "memory_exponent_1024_2048") for one in (run, hers, kernel)]
    assert [one.required for one in found] == [False, True, False]
    assert "masked" in found[0].detail
    assert "masked" not in found[1].detail


@pytest.mark.parametrize(("profile", "backend"), list(KNOWN_PEAK_ALLOC_MIB))
def test_a_peak_far_above_the_kept_one_warns(profile, backend):
    assert gate(known(1.24, profile, backend), "known_peak").outcome == PASS
    run = known(1.26, profile, backend)
    assert gate(run, "known_peak").outcome == WARN
    custom = replace(run, info={**run.info, "custom": ["dim=64"]})
    assert gate(custom, "known_peak").outcome == NOT_RUN
    first = f"s{run.parameter('seq_lens')[0]}"
    assert gate(without(run, first), "known_peak").outcome == NOT_RUN


def test_advice_names_the_setting_that_reserves_too_much_and_says_slow_is_not_hung():
    run = healthy()
    assert "No allocator setting" in scaling_advice(run)[0]
    steps = run.steps.copy()
    steps.loc[steps["case_id"] == "smoke_both", "peak_reserved_mib"] = 75_430.0
    steps.loc[steps["case_id"] == "s2048", "step_ms"] = 93_600.0
    slow, setting, predicted = scaling_advice(replace(run, steps=steps))
    assert slow.startswith("S=2048 is slow, 93.6 s an iteration; it was not hung")
    assert setting.startswith(f"Under {CHECKLIST_ALLOC_CONF} the smoke's train step reserves 75,430 MiB for ")
    assert predicted == "Predicted peak of the smoke with 12 layers: 1,520 MiB allocated."


def test_a_run_without_any_case_is_read_without_a_traceback():
    run = healthy()
    empty = replace(run, cases=run.cases[:0], steps=run.steps[:0])
    assert {g.outcome for g in scaling_gates(empty)} == {NOT_RUN}
    assert scaling_advice(empty) == []
    assert scaling_headline(empty) == "no length was measured"
    for figure in scaling_figures(empty).values():
        assert figure.layout.title.subtitle.text == "no steps recorded"
