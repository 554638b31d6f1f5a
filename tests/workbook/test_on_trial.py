"""What stands in a run of what a user brought: identity, evidence, banner, history; and what is said before it."""

import json
import shutil
from dataclasses import replace

import pytest

from nsa_lib.contract.agenda import OWED, check_names
from nsa_lib.judgement.identity import configuration, disagreements
from nsa_lib.report.verdict import SCHEMA, Verdict
from nsa_lib.subject.config import OWN
from nsa_lib.workbook import decide as decisions
from nsa_lib.workbook.comparison import comparison_page
from nsa_lib.workbook.history import history_line, index_page
from nsa_lib.workbook.on_trial import BY, foretold_on_trial
from nsa_lib.workbook.preflight.cases import preflight_cases
from nsa_lib.workbook.questions import counted
from nsa_lib.workbook.run import compare, judged_run
from tests.made import resolved
from tests.made_runs import MACHINE, edit, set_parameter

ON_TRIAL = {
    "role": "attention", "spec": "/home/me/mine.py:Mine", "label": "mine.py:Mine", "path": "/home/me/mine.py",
    "files": 2, "sha256": "1" * 64, "file_sha256": "2" * 64, "version": None, "has": [],
    "judged": "judged without a reference",
}  # fmt: skip


@pytest.fixture
def put(templates, tmp_path):
    """Leave a run of a user's attention in the folder of the test."""

    def left(notebook, **changes):
        folder = templates.put(tmp_path, notebook)
        edit(folder / "run.json", on_trial={**ON_TRIAL, **changes})
        set_parameter(folder, "attention", changes.get("spec", ON_TRIAL["spec"]))
        return folder

    return left


def configurations(*folders):
    return {folder.name: configuration(json.loads((folder / "run.json").read_text())) for folder in folders}


def test_two_runs_of_one_subject_are_of_one_configuration(put):
    assert disagreements(configurations(put("preflight"), put("smoke"))) == {}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sha256": "3" * 64}, "on_trial_sha256"),
        ({"version": "1.1"}, "on_trial_version"),
        ({"spec": "/home/me/mine.py:Other"}, "attention"),
    ],
)
def test_a_changed_file_another_version_and_another_name_are_other_subjects(put, changes, name):
    assert set(disagreements(configurations(put("preflight"), put("smoke", **changes)))) == {name}


def test_a_run_of_a_users_is_never_counted_with_one_of_ours(templates, tmp_path, put):
    found = disagreements(configurations(put("preflight"), templates.put(tmp_path, "smoke")))
    assert {"attention", "on_trial_sha256"} <= set(found)


def test_readiness_over_two_subjects_decides_nothing(put, tmp_path, monkeypatch):
    monkeypatch.setattr(decisions, "_now", lambda: MACHINE)
    for notebook in counted():
        put(notebook)
    set_parameter(tmp_path / "runs" / "smoke-1", "reserved_limit_mib", None)  # known of ours alone
    edit(tmp_path / "runs" / "smoke-1" / "run.json", on_trial={**ON_TRIAL, "sha256": "3" * 64})
    run = decisions.decide({"out_dir": str(tmp_path)})
    gate = next(gate for gate in run.gates if gate.name == "same_configuration")
    assert gate.outcome == "NOT_RUN"
    assert "on_trial_sha256" in gate.detail
    assert run.verdict == "INCOMPLETE"


def test_readiness_names_the_one_subject_of_all_its_runs_and_none_of_several(put, tmp_path, monkeypatch):
    monkeypatch.setattr(decisions, "_now", lambda: MACHINE)
    for notebook in counted():
        put(notebook)
    set_parameter(tmp_path / "runs" / "smoke-1", "reserved_limit_mib", None)  # known of ours alone
    one = decisions.decide({"out_dir": str(tmp_path)})
    assert one.summary["on_trial"] == "mine.py:Mine, judged without a reference"
    edit(tmp_path / "runs" / "smoke-1" / "run.json", on_trial={**ON_TRIAL, "sha256": "3" * 64})
    assert decisions.decide({"out_dir": str(tmp_path)}).summary["on_trial"] == ""


def test_two_versions_of_one_file_are_compared_by_what_differs_of_it(put, tmp_path):
    run_a = judged_run(put("smoke"))
    assert "on trial" not in set(compare(run_a, run_a)["kind"])
    shutil.copytree(run_a.folder, tmp_path / "runs" / "smoke-2")
    edit(tmp_path / "runs" / "smoke-2" / "run.json", run_id="smoke-2", on_trial={**ON_TRIAL, "sha256": "3" * 64})
    run_c = judged_run(tmp_path / "runs" / "smoke-2")
    (row,) = (row for row in compare(run_a, run_c).itertuples(index=False) if row.kind == "on trial")
    assert tuple(row)[1:] == ("sha256", "1" * 64, "3" * 64)
    page = comparison_page(run_a, run_c).replace("<wbr>", "")
    assert page.count("mine.py:Mine, judged without a reference: ") == 2
    assert "3" * 12 + "…" in page


@pytest.mark.parametrize(("ran", "said"), [("2", False), ("4", True)])
def test_a_worker_that_loaded_another_file_than_was_tried_is_a_contradiction(put, ran, said):
    folder = put("smoke")
    edit(folder / "cases" / "training" / "result.json", on_trial={**ON_TRIAL, "file_sha256": ran * 64})
    (gate,) = [gate for gate in judged_run(folder).gates if gate.name == "evidence"]
    assert ("training: it ran another mine.py:Mine than was tried before the run" in gate.detail) == said


def test_the_banner_and_the_history_name_it_and_how_it_was_judged(put, tmp_path):
    run = judged_run(put("smoke"))
    assert run.summary["on_trial"] == "mine.py:Mine, judged without a reference"
    banner = Verdict.from_record({**run.summary, "schema": SCHEMA})
    assert banner.notes[0] == "On trial: mine.py:Mine, judged without a reference."
    line = history_line(run)
    assert line["on_trial"] == "mine.py:Mine, judged without a reference"
    assert "Mine, judged without a reference: " in index_page(tmp_path, [line], [])


class Asked:
    """A plan of a preflight, as far as what is said before it asks."""

    def __init__(self, role, *, compiled=False, **known):
        values = resolved("preflight", {role: "/home/me/mine.py:Mine", "compile": compiled}, profile="laptop")
        self.values, self.cases = values, preflight_cases(values, (OWN,))
        self.on_trial = {**ON_TRIAL, "role": role, **known}

    def __getitem__(self, name):
        return self.values[name].value


def said(role, **known):
    first, *lines = foretold_on_trial(Asked(role, **known))
    return first, {line.split()[0]: line for line in lines}


@pytest.mark.parametrize("role", ["attention", "backend", "model"])
def test_every_check_that_will_be_made_is_foretold_with_what_it_judges_by(role):
    first, lines = said(role)
    assert first == "on trial: /home/me/mine.py:Mine (2 files, sha256 111111111111)"
    made = {name for group, names in check_names((OWN,), brings=role).items() for name in names if "own" in group}
    assert made <= set(lines)
    assert {*OWED, "copy_near", "copy_far", "compiled"} == set(BY)
    assert all(BY[name] in lines[name] for name in made)
    assert "not asked" in lines["compiled"]


def test_what_decides_and_what_is_only_shown_is_told_apart():
    _, lines = said("attention")
    assert [lines[name].split()[1] for name in ("future", "copy_near", "same_bits", "copy_far")] == [
        "required", "required", "shown", "shown",
    ]  # fmt: skip
    assert "has none" in lines["reference"]
    _, lines = said("attention", has=["reference", "deterministic"], version="1.2.3", compiled=True)
    assert [lines[name].split()[1] for name in ("reference", "same_bits", "compiled")] == ["required"] * 3


def test_the_version_of_a_package_is_told():
    assert said("attention", version="1.2.3")[0].endswith("sha256 111111111111, version 1.2.3)")


def test_a_model_without_checkpointing_of_its_own_is_told_so():
    assert "has none" in said("model")[1]["checkpointing"]
    assert "required" in said("model", has=["gradient_checkpointing_enable"])[1]["checkpointing"]


def test_nothing_is_foretold_of_ours():
    asked = Asked("attention")
    assert list(foretold_on_trial(type("Plan", (), {"on_trial": None, "cases": asked.cases}))) == []


def of_a_training(role, **known):
    asked = Asked(role, **known)
    asked.cases = [replace(case, work="train", attest=True) for case in asked.cases]
    return list(foretold_on_trial(asked))[1:]


def test_the_gates_of_a_smoke_that_will_not_run_are_foretold():
    assert of_a_training("backend") == []
    (line,) = of_a_training("attention")
    assert line.startswith("  attention, choice, gradients, blocks: NOT_RUN, the reference does not know the attention")
    told = of_a_training("model")
    assert [line.split(":")[0].strip() for line in told[1:]] == ["route", "grad_checkpointing"]
    assert len(of_a_training("model", has=["gradient_checkpointing_enable"])) == 2
