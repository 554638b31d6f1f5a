"""The cases of a preflight."""

from nsa_lib.contract.agenda import check_names
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS
from nsa_lib.workbook.preflight.cases import FULL, preflight_cases
from tests.made import resolved


def test_a_case_is_a_group_of_checks_and_the_last_one_steps_at_the_runs_own_size():
    values = resolved("preflight", {}, profile="checklist")
    for backends in (PLAIN_BACKENDS, BACKEND_NAMES):
        *cases, full = preflight_cases(values, backends)
        groups = {group: len(names) for group, names in check_names(backends).items()}
        assert {case.case_id: case.steps for case in cases} == groups
        assert {(case.work, case.backends) for case in cases} == {("checks", backends)}
    assert (full.case_id, full.work, full.steps, full.attest) == (FULL, "train", 3, True)
    sizes = {"seq_len": full.seq_len, "batch": full.batch, "layers": full.model.layers, "vocab": full.model.vocab}
    assert sizes == {name: values[name].value for name in sizes}


def test_what_is_yours_is_compiled_for_its_own_check_alone():
    values = resolved("preflight", {"attention": "/mine.py:Mine", "compile": True}, profile="laptop")
    *cases, full = preflight_cases(values, PLAIN_BACKENDS)
    assert all(case.compile for case in cases)
    assert not full.compile
