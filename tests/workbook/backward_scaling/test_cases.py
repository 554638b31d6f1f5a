"""The cases of a backward scaling."""

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.workbook.backward_scaling.cases import scaling_cases
from nsa_lib.workbook.profiles import CHECKLIST_ALLOC_CONF
from tests.made import resolved
from tests.workbook.backward_scaling.made import LENGTHS


def test_the_cases_are_the_checklists():
    values = resolved("backward_scaling", {}, profile="checklist")
    cases = {case.case_id: case for case in scaling_cases(values, ())}
    lengths = [cases[f"s{length}"] for length in LENGTHS]
    assert {(c.work, c.model.layers, c.grad_checkpointing, c.steps - c.warmup_steps) for c in lengths} == {
        ("backward", 5, False, 10)
    }
    trains = [cases[f"train_{layers}"] for layers in (1, 3, 5)]
    assert all(c.work == "train" and c.grad_checkpointing and c.seq_len == 2048 for c in trains)
    smokes = [cases[f"smoke_{name}"] for name in ALLOCATOR_SETTINGS]
    assert {c.alloc_conf for c in smokes} == set(ALLOCATOR_SETTINGS.values())
    assert {c.model.layers for c in smokes} == {12}
    # The checklist's own line is the length itself.
    assert "backward_both" not in cases
    assert cases["s2048"].alloc_conf == CHECKLIST_ALLOC_CONF
    assert cases["backward_default"].alloc_conf == ""
