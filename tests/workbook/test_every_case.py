"""Every case of every plan is named by a gate, or listed as advice: one that dies fails a required gate."""

import pytest

from nsa_lib.judgement.gate import FAIL, FAILED_STATUSES
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS
from nsa_lib.workbook.questions import QUESTIONS
from tests.made import made, resolved, with_case
from tests.workbook.preflight.made import FACTS

PROFILES = ("checklist", "laptop")

CREATED = "2025-03-01T10:15:00+00:00"

GIVEN = (
    {},
    {"backend": "packed", "alloc_conf": ""},
    {"backend": "fused", "compile": True},
    {"alloc_conf": "max_split_size_mb:64", "batch": 4, "layers": 1},
    {"anomaly": False, "profiler": False, "steps": 7},
    {"seq_lens": [96, 100, 3000], "steps": 1, "rounds": 1},
    {"seq_lens": [1], "seq_len": 1, "w": 1},
    {"device": "cpu", "dtype": "float64", "grad_checkpointing": False},
)
"""Parameters besides a profile; a plan takes those that its notebook has."""

JUDGED = [name for name, question in QUESTIONS.items() if question.judging and question.request.cases]


def plans(notebook):
    """Yield the cases of plans of a notebook, and a run in which all were interrupted: no gate fails for that."""
    request = QUESTIONS[notebook].request
    for profile in PROFILES:
        for given in GIVEN:
            own = {name: value for name, value in given.items() if name in request.parameters}
            if notebook == "preflight":
                own.pop("compile", None)  # it compiles only what a user brings
            values = resolved(notebook, own, profile=profile)
            on_gpu = values["device"].value == "cuda"
            if own.get("backend") == "fused" and not on_gpu:
                continue
            backends = BACKEND_NAMES if on_gpu else PLAIN_BACKENDS
            cases = [case.case_id for case in request.cases(values, backends)]
            info = {"notebook": notebook, "profile": profile, "environment": FACTS, "created": CREATED}
            ended = [{"case_id": case_id, "status": "interrupted", "reason": "", "executed": None} for case_id in cases]
            yield cases, made(info, ended, [], values, backends=backends)


def failed(run):
    return {gate.name for gate in run.gates if gate.required and gate.outcome == FAIL}


def unnamed(run, cases, status):
    """Return the cases that may end with a status without a required gate that fails for it."""
    before = failed(run)  # by parameters alone, such as checkpointing that is off
    return [case_id for case_id in cases if failed(with_case(run, case_id, status=status, reason="x")) <= before]


@pytest.mark.parametrize("notebook", JUDGED)
def test_a_case_that_dies_fails_a_required_gate_or_is_listed_as_advice(notebook):
    listed = QUESTIONS[notebook].judging.advice_only
    for cases, run in plans(notebook):
        assert len(set(cases)) == len(cases)
        assert set(unnamed(run, cases, "oom")) == set(listed) & set(cases), run.info


@pytest.mark.parametrize("status", FAILED_STATUSES)
@pytest.mark.parametrize("notebook", JUDGED)
def test_so_it_is_however_it_dies(notebook, status):
    cases, run = next(plans(notebook))
    assert set(unnamed(run, cases, status)) <= set(QUESTIONS[notebook].judging.advice_only)


def test_all_notebooks_that_are_judged_and_run_cases_are_tried():
    assert set(JUDGED) == {"preflight", "backward_scaling", "smoke", "backend_contrast", "several_gpus"}
