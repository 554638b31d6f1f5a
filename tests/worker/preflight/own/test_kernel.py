"""A user's kernel before the checks of NSA: the same layer around it, held against the float64 reference."""

import pytest

from nsa_lib.contract.agenda import check_names
from nsa_lib.subject.config import OWN
from nsa_lib.subject.own.attention import install
from nsa_lib.worker.preflight import subject_checks
from tests.worker.preflight.own.test_own import case_of

NAMES = check_names((OWN,), brings="backend")["subject"]


def check(name, kernel, file="honest"):
    case = case_of(file, kernel, role="backend")
    install(case.model)
    return subject_checks(case, lambda: None)[name]()


@pytest.mark.parametrize("name", NAMES)
def test_an_honest_kernel_passes_each(name):
    found = check(name, "kernel")
    assert found.holds, found


@pytest.mark.parametrize("name", ["selected_own", "attention_own"])
def test_a_kernel_that_forgets_its_scale_is_found_by_the_reference(tmp_path, name):
    (tmp_path / "scaled.py").write_text(
        "from tests.worker.preflight.own.honest import kernel as honest\n"
        "def kernel(q, k, v, block_indices, *, l_sel, scale):\n"
        "    return honest(q, k, v, block_indices, l_sel=l_sel, scale=1.1 * scale)\n"
    )
    found = check(name, "kernel", tmp_path / "scaled")
    assert found.holds is False, found
