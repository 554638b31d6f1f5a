"""The gates of a preflight: prerequisites and checks."""

from dataclasses import asdict, replace

import pytest

from nsa_lib.contract.agenda import check_names
from nsa_lib.judgement.attestation import GATES
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, verdict
from nsa_lib.subject.config import BACKEND_NAMES, OWN, PLAIN_BACKENDS
from nsa_lib.workbook.preflight.cases import FULL
from nsa_lib.workbook.preflight.figures import checks_table
from nsa_lib.workbook.preflight.gates import preflight_advice, preflight_gates, preflight_headline
from tests.made import routed, with_case
from tests.workbook.preflight.made import WITH_FUSED, gate, preflight


@pytest.mark.parametrize("profile", ["checklist", "laptop"])
def test_a_preflight_that_went_well_is_go(profile):
    assert verdict(preflight_gates(preflight(profile)))[0] == "GO"


@pytest.mark.parametrize(
    ("name", "fact", "outcome", "said"),
    [
        ("torch", {"torch": "2.4.1"}, FAIL, "missing"),
        ("torch", {"torch": None}, NOT_RUN, "not recorded"),
        ("disk_free", {"disk_free_mib": 1023}, WARN, "differs"),
        ("disk_free", {"disk_free_mib": None}, NOT_RUN, "not recorded"),
        ("gpu", {"cuda_usable": False, "cuda_problem": "no driver"}, FAIL, "missing: no driver"),
        ("driver", {"driver": None}, WARN, "nvidia-smi does not answer"),
        ("bf16", {"bf16_supported": False}, FAIL, "missing"),
        ("bf16", {"bf16_supported": None}, NOT_RUN, "not recorded"),
        ("gpu_memory_free", {"gpu_memory_free_mib": 120_000}, WARN, "120,000 of 143,771 MiB"),
        ("gpu_memory_free", {"gpu_memory_free_mib": 120_000, "gpu_processes": ["python (pid 7)"]}, WARN, "pid 7"),
        ("gpu_memory_free", {"gpu_memory_free_mib": None}, NOT_RUN, "not recorded"),
    ],
)
def test_a_prerequisite_is_met_differs_or_is_missing(name, fact, outcome, said):
    found = gate(preflight(facts=fact), name)
    assert (found.outcome, found.required) == (outcome, True)
    assert said in found.detail


@pytest.mark.parametrize(("name", "fact"), [("gpu", "cuda_usable"), ("driver", "driver")])
def test_a_fact_that_was_not_recorded_is_no_pass(name, fact):
    run = preflight()
    del run.info["environment"][fact]
    assert gate(run, name).outcome == NOT_RUN


def test_another_allocator_setting_differs_and_checkpointing_off_is_missing():
    assert gate(preflight(alloc_conf="expandable_segments:True"), "alloc_conf").outcome == WARN
    assert gate(preflight(grad_checkpointing=False), "grad_checkpointing").outcome == FAIL
    off = gate(preflight("laptop", grad_checkpointing=False), "grad_checkpointing")
    assert (off.outcome, off.required) == (FAIL, False)


@pytest.mark.parametrize(
    ("told", "outcome"), [({}, NOT_RUN), ({"setting": ""}, FAIL), ({"setting": "expandable_segments:True"}, FAIL)]
)
def test_the_allocator_setting_is_the_one_in_force_and_not_the_one_asked_for(told, outcome):
    found = gate(with_case(preflight(), "subject", effective={"allocator": told}), "alloc_conf")
    assert (found.outcome, found.required) == (outcome, True)


@pytest.mark.parametrize("name", ["gpu", "driver", "bf16", "gpu_memory_free", "alloc_conf"])
def test_a_laptop_is_not_asked_for_a_gpu(name):
    found = gate(preflight("laptop", facts={"cuda_usable": False}), name)
    assert (found.outcome, found.required) == (NOT_RUN, False)


def test_what_differs_is_a_persons_to_decide():
    assert verdict(preflight_gates(preflight(facts={"driver": None})))[0] == "REVIEW"


@pytest.mark.parametrize("name", ["attention_masked", "future_packed", "gradients"])
def test_a_check_that_does_not_hold_fails(name):
    run = preflight(checks={name: {"holds": False, "measured": 0.3}})
    found = gate(run, name)
    assert (found.outcome, found.measured, found.limit) == (FAIL, 0.3, 0.2)
    assert found.margin == pytest.approx(-0.1)
    assert verdict(preflight_gates(run))[0] == "NO-GO"


def test_a_figure_that_is_not_a_number_has_no_margin():
    found = gate(preflight(checks={"gradients": {"holds": False, "measured": "nan"}}), "gradients")
    assert (found.outcome, found.measured, found.margin) == (FAIL, "nan", None)


@pytest.mark.parametrize(("status", "outcome"), [("crashed", FAIL), ("stalled", FAIL), ("interrupted", NOT_RUN)])
def test_a_check_that_its_case_did_not_come_to_ends_as_the_case_did(status, outcome):
    run = preflight(status=status, without=("gradients",))
    assert gate(run, "gradients").outcome == outcome
    assert gate(run, "selection").outcome == PASS, "it was made before"


def test_a_check_that_a_case_left_out_did_not_run():
    assert gate(preflight(without=("copy_slc",)), "copy_slc").outcome == NOT_RUN


def test_without_its_case_a_check_did_not_run():
    run = preflight()
    bare = replace(run, cases=run.cases[run.cases["case_id"] != "copying"])
    assert gate(bare, "copy_win").outcome == NOT_RUN


def test_another_process_on_the_gpu_is_told():
    assert preflight_advice(preflight()) == []
    assert "pid 7" in preflight_advice(preflight(facts={"gpu_processes": ["python (pid 7)"]}))[0]
    assert preflight_headline(preflight()) == "27 checks made on NVIDIA H200, bfloat16"


KINDS_OF_FUSED = ("selected", "selection", "attention", "future", "past_slc", "past_cmp", "past_win", "route")


OF_FUSED = {f"{kind}_fused" for kind in KINDS_OF_FUSED}


def test_where_fused_can_run_its_checks_belong_to_the_preflight():
    groups = [check_names(backends).values() for backends in (PLAIN_BACKENDS, BACKEND_NAMES)]
    plain, every = ({name for names in group for name in names} for group in groups)
    assert every - plain == OF_FUSED
    assert plain <= every
    whole = preflight(facts=WITH_FUSED, backends=BACKEND_NAMES)
    assert verdict(preflight_gates(whole)) == ("GO", [])
    assert {gate.name for gate in preflight_gates(whole) if gate.name.endswith("fused")} == OF_FUSED


def test_a_preflight_that_left_fused_out_where_it_can_run_is_incomplete():
    bare = preflight(facts=WITH_FUSED)
    bare = replace(bare, info={**bare.info, "backends": BACKEND_NAMES})
    assert verdict(preflight_gates(bare))[0] == "INCOMPLETE"
    assert {gate.name for gate in preflight_gates(bare) if gate.outcome == NOT_RUN} == OF_FUSED


@pytest.mark.parametrize("name", sorted(OF_FUSED))
def test_a_check_of_fused_that_does_not_hold_fails(name):
    run = preflight(facts=WITH_FUSED, backends=BACKEND_NAMES, checks={name: {"holds": False}})
    assert (gate(run, name).outcome, verdict(preflight_gates(run))[0]) == (FAIL, "NO-GO")


@pytest.mark.parametrize("name", [name for names in check_names(PLAIN_BACKENDS).values() for name in names])
def test_every_check_has_a_gate_that_fails_and_one_that_does_not_run(name):
    assert gate(preflight(checks={name: {"holds": False}}), name).outcome == FAIL
    assert gate(preflight(without=(name,)), name).outcome == NOT_RUN


@pytest.mark.parametrize("holds", [None, "true", 1, 0])
def test_only_true_is_a_pass(holds):
    assert gate(preflight(checks={"gradients": {"holds": holds}}), "gradients").outcome == FAIL


@pytest.mark.parametrize(
    "fact", ["torch", "disk_free_mib", "cuda_usable", "driver", "bf16_supported", "gpu_memory_mib"]
)
def test_a_fact_that_is_not_there_is_no_pass(fact):
    names = {"disk_free_mib": "disk_free", "cuda_usable": "gpu", "bf16_supported": "bf16",
             "gpu_memory_mib": "gpu_memory_free"}  # fmt: skip
    run = preflight()
    del run.info["environment"][fact]
    found = gate(run, names.get(fact, fact))
    assert (found.outcome, found.required) == (NOT_RUN, True)


@pytest.mark.parametrize("brings", ["attention", "backend", "model"])
def test_what_a_user_brings_is_go_where_all_that_it_owes_is_found(brings):
    run = preflight(brings=brings)
    assert verdict(preflight_gates(run)) == ("GO", [])
    owed = {name for names in check_names((OWN,), brings=brings).values() for name in names}
    assert owed <= {gate.name for gate in preflight_gates(run)}


def test_the_allocator_setting_of_what_a_user_brings_is_that_of_its_first_case():
    run = preflight(brings="model")
    assert gate(run, "alloc_conf").outcome == PASS
    assert gate(with_case(run, "own", effective={}), "alloc_conf").outcome == NOT_RUN


def test_what_a_user_brings_is_judged_by_its_checks_and_no_other():
    run = preflight(brings="attention")
    assert verdict(preflight_gates(replace(run, info={**run.info, "on_trial": None})))[0] == "INCOMPLETE"


def test_the_traceback_of_a_users_code_stands_below_the_check_that_it_failed():
    raised = {"holds": False, "user_traceback": 'File "mine.py", line 3\nKeyError: 7'}
    run = preflight(brings="attention")
    checks = [{**one, **raised} if one["name"] == "future" else one for one in run.case("own")["checks"]]
    judged = gate(with_case(run, "own", checks=checks), "future")
    assert judged.outcome == FAIL
    html = checks_table([asdict(judged)], "own")._repr_html_()
    assert "<summary>traceback</summary>" in html
    assert "KeyError: 7" in html


# Steps at the run's own size

FULL_NAMES = [f"{name}_full" for name in ("steps", "route", *GATES.values(), "unrecorded")]


def test_a_row_that_is_wrong_at_the_runs_own_length_alone_fails():
    run = preflight()
    first, *others = run.case(FULL)["attestation"]
    wrong = {**first, "wrong": {**first["wrong"], "attention": {"layer 1 win": "relative error 1.3"}}}
    spoilt = with_case(run, FULL, attestation=[wrong, *others])
    assert (gate(spoilt, "attention_full").outcome, verdict(preflight_gates(spoilt))[0]) == (FAIL, "NO-GO")
    assert {gate(run, name).outcome for name in FULL_NAMES} == {PASS}


def test_another_backend_at_the_runs_own_length_fails():
    assert gate(routed(preflight(), FULL, "gather"), "route_full").outcome == FAIL


def test_a_full_step_that_crashes_fails_and_one_that_was_not_taken_is_incomplete():
    crashed = with_case(preflight(), FULL, status="crashed", reason="SIGSEGV", attestation=None, replay=None)
    assert (gate(crashed, "steps_full").outcome, verdict(preflight_gates(crashed))[0]) == (FAIL, "NO-GO")
    run = preflight()
    without = replace(run, cases=run.cases[run.cases["case_id"] != FULL], steps=run.steps[:0])
    assert {gate(without, name).outcome for name in FULL_NAMES} == {NOT_RUN}
    assert verdict(preflight_gates(without))[0] == "INCOMPLETE"
