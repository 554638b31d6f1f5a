"""The cases of a backend contrast."""

import pytest

from nsa_lib.contract.agenda import DENSE, WARMUP_ROUNDS, contestants
from nsa_lib.contract.case import FEWEST_STEPS
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS
from nsa_lib.workbook.backend_contrast.cases import contrast_cases
from tests.workbook.backend_contrast.made import requested


def test_each_model_has_a_case_of_its_own_and_all_timings_share_one():
    cases = {case.case_id: case for case in contrast_cases(requested(), PLAIN_BACKENDS)}
    assert list(cases) == ["model_masked", "model_gather", "model_packed", "model_dense", "timing"]
    for name in PLAIN_BACKENDS:
        case = cases[f"model_{name}"]
        assert (case.model.backend, case.model.attention, case.work) == (name, "nsa", "train")
        assert (case.check_attention, case.compare_selected, case.profile_operators) == (True, True, True)
    dense = cases["model_dense"]
    assert (dense.model.attention, dense.check_attention, dense.compare_selected) == (DENSE, False, False)
    assert {(case.model.layers, case.seq_len, case.steps) for name, case in cases.items() if name != "timing"} == {
        (12, 2048, 20)
    }


def test_where_fused_can_run_it_has_a_case_too_and_takes_its_turns():
    cases = {case.case_id: case for case in contrast_cases(requested(), BACKEND_NAMES)}
    assert list(cases) == [*(f"model_{name}" for name in BACKEND_NAMES), "model_dense", "timing"]
    fused = cases["model_fused"]
    assert (fused.model.backend, fused.check_attention, fused.compare_selected) == ("fused", True, True)
    assert cases["timing"].backends == BACKEND_NAMES
    field = contestants(2048, requested()["seq_lens"].value, backends=BACKEND_NAMES)
    assert cases["timing"].warmup_steps == len(field) * WARMUP_ROUNDS


@pytest.mark.parametrize("profile", ["checklist", "laptop"])
def test_the_timing_has_a_step_for_each_turn(profile):
    values = requested(profile)
    timing = contrast_cases(values, PLAIN_BACKENDS)[-1]
    count = len(contestants(values["seq_len"].value, values["seq_lens"].value, backends=PLAIN_BACKENDS))
    assert timing.work == "timing"
    assert timing.seq_lens == values["seq_lens"].value
    assert timing.steps == count * (WARMUP_ROUNDS + values["rounds"].value)
    assert timing.warmup_steps == count * WARMUP_ROUNDS


def test_too_few_steps_for_two_windows_count_no_operators():
    for steps, counts in ((FEWEST_STEPS - 1, False), (FEWEST_STEPS, True)):
        counted = [case.profile_operators for case in contrast_cases(requested(steps=steps), PLAIN_BACKENDS)]
        assert counted == [counts] * 4 + [False]
