"""The trials name what exists, and the selftest says caught only for a verdict that is red for the right reason."""

import json
from dataclasses import replace

import pytest

from nsa_lib import selftest
from nsa_lib.contract.faults import FAULTS, FAULTS_AT, RANK_FAULTS, RANK_FAULTS_AT
from nsa_lib.runs import environment
from nsa_lib.runs.environment import PROJECT
from nsa_lib.runs.folder import make_run_folder
from nsa_lib.selftest import TRIALS, Trial
from nsa_lib.workbook.questions import QUESTIONS, plan
from nsa_lib.workbook.run import Run
from tests.runs.test_plan import CPU

NAN, KILL = (next(trial for trial in TRIALS if trial.fault == fault) for fault in ("nan_loss", "sigkill"))


def ids(trial):
    return trial.name


@pytest.mark.parametrize("fault", [*FAULTS, *FAULTS_AT, *RANK_FAULTS, *RANK_FAULTS_AT])
def test_every_fault_has_a_trial(fault):
    assert fault in {trial.fault for trial in TRIALS}


def test_every_trial_has_a_name_of_its_own():
    assert len({trial.name for trial in TRIALS}) == len(TRIALS)


def test_every_notebook_with_faults_has_a_run_without_one_that_is_go():
    controls = {trial.notebook: trial.verdict for trial in TRIALS if trial.fault == "none"}
    tried = {trial.notebook for trial in TRIALS}
    assert controls == dict.fromkeys(tried, "GO")
    assert tried == {name for name, question in QUESTIONS.items() if "fault" in question.request.parameters}


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """Return the plan of a trial on a machine without a GPU."""
    monkeypatch.setattr(environment, "torch_facts", lambda: CPU)
    monkeypatch.setattr(environment, "has_nvidia_device", lambda: False)
    return lambda trial: plan(
        trial.notebook, {**trial.parameters, "fault": trial.fault, "out_dir": str(tmp_path), "In": []}
    )


@pytest.mark.parametrize("trial", TRIALS, ids=ids)
def test_a_trial_names_a_notebook_its_parameters_a_fault_and_a_gate(planned, trial):
    assert (PROJECT / "notebooks" / f"{trial.notebook}.ipynb").exists()
    assert set(trial.parameters) <= set(QUESTIONS[trial.notebook].request.parameters)
    assert trial.fault in {**FAULTS, **FAULTS_AT, **RANK_FAULTS, **RANK_FAULTS_AT}
    found = planned(trial)
    assert {case.fault for case in found.cases} - {"none"} == {trial.fault} - {"none"}
    gates = {gate.name: gate for gate in Run.read(make_run_folder(found)).gates}
    assert (trial.verdict, trial.gate) == ("GO", "") or (trial.verdict in selftest.RED and gates[trial.gate].required)


def test_a_fault_makes_the_run_custom_and_no_fault_does_not(planned):
    bare = Trial("none", "GO", "", parameters={"profile": "laptop"})
    assert planned(bare).custom == ()
    assert planned(replace(bare, fault="leak_12")).custom == ("fault=leak_12: a seeded fault",)
    assert "-r fault leak_12" in planned(replace(bare, fault="leak_12")).reproduce


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run two trials through papermill; the exit status, and where they are."""
    reports = tmp_path_factory.mktemp("reports")
    return selftest.selftest(reports, [NAN, KILL]), reports


def folder_of(reports, trial):
    return next(reports.glob(f"selftest-*/{trial.name}"))


def test_real_runs_turn_red_and_leave_a_table(ran):
    status, reports = ran
    assert status == 0
    (path,) = reports.glob("selftest-*.json")
    found = json.loads(path.read_text())["findings"]
    assert [(row["fault"], row["got"], row["gate"], row["caught"]) for row in found] == [
        ("nan_loss", "NO-GO", "finite", True),
        ("sigkill", "NO-GO", "steps", True),
    ]
    assert all(row["seconds"] > 0 for row in found)
    assert found[0]["because"].startswith("loss is nan at step 5")
    lines = path.with_suffix(".md").read_text().splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert rows == ["fault", "---", "nan_loss", "sigkill"]
    assert any(line.startswith("- `leak_12` has no moment: ") for line in lines)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"gate": "loss_falls"}, 1),  # red, but that gate did not run
        ({"gate": "route"}, 1),  # red, but that gate passed as far as it came
        ({"gate": "no_such_gate"}, 1),
        ({"says": "inf"}, 1),
        ({"verdict": "INCOMPLETE"}, 1),
        ({"verdict": "GO", "gate": ""}, 1),
        ({"fault": "leak_12"}, 1),  # not what the run says was planted
        ({}, 0),  # papermill must fail too
        ({}, None),  # it never came to an end
    ],
)
def test_red_for_another_reason_is_not_caught(ran, changes, status):
    _, caught, _ = selftest.judge(replace(NAN, **changes), folder_of(ran[1], NAN), status)
    assert not caught


def test_what_never_ran_is_not_caught(tmp_path):
    assert selftest.judge(NAN, tmp_path, 1)[:2] == ("nothing", False)


def test_one_missed_fault_fails_the_selftest(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(selftest, "run_notebook", lambda trial, folder: 1)
    assert selftest.selftest(tmp_path, [NAN]) == 1
    assert "0 of 1 as expected" in capsys.readouterr().out
