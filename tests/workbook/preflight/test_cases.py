"""The cases of a preflight."""

from nsa_lib.contract.agenda import check_names
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS
from nsa_lib.workbook.preflight.cases import preflight_cases
from tests.made import resolved


def test_a_case_is_a_group_of_checks():
    values = resolved("preflight", {}, profile="checklist")
    for backends in (PLAIN_BACKENDS, BACKEND_NAMES):
        cases = preflight_cases(values, backends)
        groups = {group: len(names) for group, names in check_names(backends).items()}
        assert {case.case_id: case.steps for case in cases} == groups
        assert {(case.work, case.backends) for case in cases} == {("checks", backends)}
