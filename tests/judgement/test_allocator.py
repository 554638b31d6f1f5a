"""The gate of the allocator setting: what is in force against what was asked for."""

import pytest

from nsa_lib.judgement.allocator import allocator_gate
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS
from tests.made import with_case
from tests.workbook.smoke.made import ended, healthy

BOTH = "expandable_segments:True,max_split_size_mb:256"


def judged(*, asked=BOTH, **reading):
    """Judge a smoke whose training told this of its last recorded step."""
    run = healthy(alloc_conf=asked)
    steps = run.case("training")["executed"]
    run = with_case(run, "training", executed=[*steps[:-1], {**steps[-1], "allocator": reading}])
    return allocator_gate(run, ["training", "anomaly"])


@pytest.mark.parametrize(
    ("asked", "reading"),
    [
        (BOTH, {"setting": BOTH, "expandable_segments": True, "max_split_mib": 256}),
        (BOTH, {"setting": "expandable_segments:True, max_split_size_mb:256"}),
        ("", {"setting": "", "expandable_segments": False, "max_split_mib": None}),
        ("backend:cudaMallocAsync", {"setting": "backend:cudaMallocAsync"}),
        ("roundup_power2_divisions:[256:1,512:2]", {"setting": "roundup_power2_divisions:[256:1,512:2]"}),
    ],
)
def test_the_setting_asked_for_passes(asked, reading):
    gate = judged(asked=asked, **reading)
    assert (gate.outcome, gate.required) == (PASS, True)


@pytest.mark.parametrize(
    ("asked", "reading", "said"),
    [
        (BOTH, {"setting": ""}, "training: the setting in force is none"),
        ("", {"setting": "expandable_segments:True"}, "in force is expandable_segments:True"),
        (BOTH, {"setting": BOTH, "expandable_segments": False}, "expandable_segments in force is False"),
        (BOTH, {"setting": BOTH, "max_split_mib": None}, "max_split_mib in force is None"),
        (BOTH, {"setting": BOTH, "max_split_mib": 64}, "max_split_mib in force is 64"),
        ("", {"setting": "", "expandable_segments": True}, "expandable_segments in force is True"),
    ],
)
def test_another_setting_fails_in_whichever_step_it_was_in_force(asked, reading, said):
    gate = judged(asked=asked, **reading)
    assert (gate.outcome, gate.required) == (FAIL, True)
    assert said in gate.detail


def test_what_torch_does_not_tell_is_no_pass():
    gate = judged(expandable_segments=True, max_split_mib=256)
    assert (gate.outcome, gate.required) == (NOT_RUN, True)
    assert "not told in training" in gate.detail


def test_a_case_without_a_recorded_step_is_no_pass():
    run = with_case(healthy(), "anomaly", executed=None)
    assert allocator_gate(run, ["training", "anomaly"]).outcome == NOT_RUN
    assert allocator_gate(run, []).outcome == NOT_RUN
    cut = ended(healthy(), "interrupted", 90, executed=healthy().case("training")["executed"])
    assert allocator_gate(cut, ["training"]).outcome == NOT_RUN
