"""Each rule of a fleet finds what it is for and names the member; it does not run without what it needs."""

from dataclasses import replace

import pytest

from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN
from nsa_lib.workbook.fleet.gates import judged_fleet, quarantine
from nsa_lib.workbook.fleet.parameters import Expected
from nsa_lib.workbook.fleet.rules import RULES
from tests.workbook.fleet.made import TOLD, fleet, saved, told

BROKEN = {
    "fingerprints": ({"fingerprint": "b" * 64}, FAIL, "other bits than 7 others"),
    "health": ({"health": told(ecc_uncorrectable=2.0)}, FAIL, "2 uncorrectable ECC errors"),
    "verdicts": ({"verdict": "NO-GO", "reasons": ["steps failed: sigkill"]}, FAIL, "steps failed: sigkill"),
    "memory": ({"peak_alloc_bytes": 1_782_579_201}, FAIL, "1,782,579,201, not 1,782,579,200"),
    "pinned": ({"gpu_uuid": "00000002-0000"}, FAIL, "2 members ran on this GPU"),
    "configuration": ({"configuration": {"torch": "2.12.0", "profile": "checklist"}}, NOT_RUN, "torch '2.12.0'"),
    "speed": ({"step_ms": 130.0}, WARN, "times the median step"),
    "clocks": ({"health": {"start": {**TOLD, "power_limit_w": 500.0}, "end": TOLD}}, WARN, "power limit in W 500"),
}

UNJUDGED = {
    "fingerprints": {"fingerprint": None, "no_fingerprint": "backend=masked adds in no fixed order"},
    "health": {"health": None},
    "verdicts": {"verdict": "INCOMPLETE", "reasons": ["steps did not run"]},
    "memory": {"peak_alloc_bytes": None},
    "speed": {"step_ms": None},
}
"""What one member lacks, for the rule not to run."""


def gate_of(made, rule, tmp_path):
    return next(gate for gate in saved(made, tmp_path).gates if gate.name == rule)


def test_a_healthy_fleet_is_go(tmp_path):
    run = saved(fleet(), tmp_path)
    assert run.verdict == "GO"
    assert {gate.name: gate.outcome for gate in run.gates} == {**dict.fromkeys(RULES, PASS), "quorum": NOT_RUN}
    assert quarantine(judged_fleet(fleet())) == []
    assert run.summary["headline"].endswith("8 of 8 members healthy, 0 to take out or look at")


@pytest.mark.parametrize("rule", BROKEN)
def test_a_rule_that_one_member_breaks_names_it_and_no_other_rule_does(rule, tmp_path):
    change, outcome, said = BROKEN[rule]
    run = saved(fleet(m5=change), tmp_path)
    gate = next(gate for gate in run.gates if gate.name == rule)
    assert (gate.outcome, gate.required) == (outcome, True)
    assert "member 5" in gate.detail
    assert said in gate.detail
    assert {gate.name for gate in run.gates if gate.required and gate.outcome != PASS} == {rule}
    assert run.verdict == {FAIL: "NO-GO", NOT_RUN: "INCOMPLETE", WARN: "REVIEW"}[outcome]


@pytest.mark.parametrize("rule", UNJUDGED)
def test_a_rule_does_not_run_for_a_member_that_lacks_what_it_needs(rule, tmp_path):
    gate = gate_of(fleet(m5=UNJUDGED[rule]), rule, tmp_path)
    assert (gate.outcome, gate.measured) == (NOT_RUN, 1)
    assert "member 5" in gate.detail


@pytest.mark.parametrize("rule", ["health", "pinned", "clocks"])
def test_a_rule_about_gpus_is_only_shown_where_no_member_has_one(rule, tmp_path):
    laptop = {f"m{rank}": {"health": None, "gpu_uuid": None} for rank in range(8)}
    gate = gate_of(fleet(**laptop), rule, tmp_path)
    assert (gate.outcome, gate.required) == (NOT_RUN, False)


def test_a_missing_member_is_named_and_leaves_the_fleet_incomplete(tmp_path):
    run = saved(fleet(m3=None), tmp_path)
    gate = next(gate for gate in run.gates if gate.name == "members")
    assert (run.verdict, gate.outcome) == ("INCOMPLETE", NOT_RUN)
    assert gate.detail == "member 3: left no run"


def test_members_by_host_are_missed_by_host(tmp_path):
    made = fleet(16, m9=None, expected=Expected(hosts={"node0": 8, "node1": 8, "node2": 8}))
    assert gate_of(made, "members", tmp_path).detail == "node1 (1 of 8): left no run; node2 (8 of 8): left no run"


def test_who_is_missing_is_not_known_where_nobody_said_who_is_expected(tmp_path):
    assert gate_of(fleet(expected=Expected()), "members", tmp_path).outcome == NOT_RUN


def test_a_split_without_a_majority_names_all_and_believes_those_that_are_go_by_themselves():
    halves = {f"m{rank}": {"fingerprint": "b" * 64} for rank in range(4)}
    split = judged_fleet(fleet(**halves))["fingerprints"].findings
    assert len(split) == 8
    assert all("nobody knows who is right: 4, 4 of 8 agree" in finding.why for finding in split)
    broken = {name: {**change, "verdict": "NO-GO"} for name, change in halves.items()}
    named = judged_fleet(fleet(**broken))["fingerprints"].findings
    assert [finding.member.rank for finding in named] == [0, 1, 2, 3]


PROVEN, REFUTED = ({"gates": {"kept_bits": outcome}} for outcome in (PASS, FAIL))
"""What a smoke came to that was compared with kept bits."""


def test_who_gave_the_bits_that_were_kept_is_right_against_any_majority():
    wrong = {f"m{rank}": {"fingerprint": "b" * 64} for rank in range(1, 8)}
    assert [f.member.rank for f in judged_fleet(fleet(**wrong))["fingerprints"].findings] == [0]
    found = judged_fleet(fleet(m0=PROVEN, **wrong))["fingerprints"].findings
    assert [f.member.rank for f in found] == [*range(1, 8)]
    assert "1 other of NVIDIA H200, who computed what was kept" in found[0].why
    halves = {name: wrong[name] for name in ("m4", "m5", "m6", "m7")}
    assert [f.member.rank for f in judged_fleet(fleet(m0=PROVEN, **halves))["fingerprints"].findings] == [4, 5, 6, 7]


def test_a_fleet_of_one_is_judged_by_what_was_kept(tmp_path):
    assert gate_of(fleet(1), "fingerprints", tmp_path / "alone").outcome == NOT_RUN
    assert gate_of(fleet(1, m0=PROVEN), "fingerprints", tmp_path / "kept").outcome == PASS
    assert [saved(fleet(1, **one), tmp_path / f"{len(one)}").verdict for one in ({}, {"m0": PROVEN})] == [
        "INCOMPLETE",
        "GO",
    ]
    assert gate_of(fleet(1, m0=REFUTED), "fingerprints", tmp_path / "refuted").outcome == NOT_RUN


def test_an_error_that_all_share_is_said_not_to_be_seen_where_nothing_was_kept(tmp_path):
    assert "an error that all share is not seen" in gate_of(fleet(), "fingerprints", tmp_path / "none").detail
    assert "all share" not in gate_of(fleet(m0=PROVEN), "fingerprints", tmp_path / "one").detail


def test_bits_that_need_not_be_the_same_are_only_shown(tmp_path):
    why = {"fingerprint": None, "no_fingerprint": "not compared, backend=masked: adds in no fixed order"}
    run = saved(fleet(**{f"m{rank}": why for rank in range(8)}), tmp_path)
    gate = next(gate for gate in run.gates if gate.name == "fingerprints")
    assert (gate.outcome, gate.required, run.verdict) == (NOT_RUN, False, "GO")
    assert "backend=masked" in gate.detail


def test_a_member_alone_of_its_kind_has_nobody_to_be_compared_with():
    found = judged_fleet(fleet(m5={"kind": "NVIDIA H100", "fingerprint": "b" * 64, "peak_alloc_bytes": 1}))
    assert [(f.member.rank, f.outcome) for f in found["fingerprints"].findings] == [(5, NOT_RUN)]
    assert found["memory"].findings[0].why == "nobody of its kind agrees with it"


OTHER_SOURCE = {"configuration": {"torch": "2.13.0", "profile": "checklist", "source_sha256": "c" * 64}}


def test_bits_of_another_source_or_profile_are_no_fault_of_a_gpu(tmp_path):
    """They are compared among themselves, and the configuration is what is named."""
    other = {"fingerprint": "b" * 64, "peak_alloc_bytes": 1, **OTHER_SOURCE}
    run = saved(fleet(m5=other), tmp_path / "one")
    assert {
        (f.member.rank, f.rule, f.outcome) for one in quarantine(judged_fleet(fleet(m5=other))) for f in one.findings
    } == {(5, "configuration", NOT_RUN)}
    assert run.verdict == "INCOMPLETE"
    three = {"m5": other, "m6": other, "m7": {**other, "fingerprint": "d" * 64}}
    assert [f.member.rank for f in judged_fleet(fleet(**three))["fingerprints"].findings] == [7]


def test_of_three_groups_without_a_majority_the_sizes_are_told():
    thirds = {f"m{rank}": {"fingerprint": "bcd"[rank % 3] * 64} for rank in range(9)}
    found = judged_fleet(fleet(9, **thirds))["fingerprints"].findings
    assert len(found) == 9
    assert "3, 3, 3 of 9 agree" in found[0].why


def test_a_number_that_two_hosts_ran_is_two_members_and_one_gpu_that_two_ran_is_named():
    made = fleet()
    requeued = replace(made.members[3], host="node9", gpu_uuid="99999999-0000")
    assert not quarantine(judged_fleet(replace(made, members=[*made.members, requeued])))
    shared = judged_fleet(fleet(m5={"gpu_uuid": "00000004-0000"}))["pinned"].findings
    assert [f.member.rank for f in shared] == [4, 5]


def test_kinds_are_compared_among_themselves():
    other = {
        f"m{rank}": {"kind": "NVIDIA H100", "fingerprint": "b" * 64, "step_ms": 200 + rank} for rank in range(6, 12)
    }
    found = judged_fleet(fleet(12, **other))
    assert not found["fingerprints"].findings
    assert not found["speed"].findings


def test_no_band_can_be_learned_from_four(tmp_path):
    gate = gate_of(fleet(4, m1={"step_ms": 300.0}), "speed", tmp_path)
    assert (gate.outcome, gate.required) == (NOT_RUN, False)


def test_the_band_is_the_fleets_own():
    """The same 8 % are an outlier of a fleet that agrees, and everyday in one that is spread."""
    tight = {f"m{rank}": {"step_ms": 100 + 0.1 * rank} for rank in range(11)}
    wide = {f"m{rank}": {"step_ms": 100 + 2.0 * rank} for rank in range(11)}
    assert judged_fleet(fleet(12, **tight, m11={"step_ms": 108.0}))["speed"].findings
    assert not judged_fleet(fleet(12, **wide, m11={"step_ms": 118.0}))["speed"].findings


@pytest.mark.parametrize(
    ("ill", "outcome"),
    [
        ({"remap_failure": True}, FAIL),
        ({"remapped_rows": 1.0}, FAIL),
        ({"remap_pending": True}, WARN),
        ({"retirement_pending": True}, WARN),
        ({"slowdowns": ["hw_thermal_slowdown"]}, WARN),
        ({"slowdown_us": {"hw_therm_slowdown": 2_000_000.0}}, WARN),
    ],
    ids=str,
)
def test_what_the_driver_tells_of_memory_and_heat_is_judged(ill, outcome):
    (finding,) = judged_fleet(fleet(m5={"health": told(**ill)}))["health"].findings
    assert (finding.member.rank, finding.outcome) == (5, outcome)


def test_rows_that_were_remapped_long_ago_are_no_fault():
    old = {"start": {**TOLD, "remapped_rows": 3.0}, "end": {**TOLD, "remapped_rows": 3.0}}
    assert not judged_fleet(fleet(m5={"health": old}))["health"].findings


def test_of_a_run_that_was_killed_the_start_is_judged():
    cut = {"start": {**TOLD, "ecc_uncorrectable": 1.0}, "end": None}
    assert judged_fleet(fleet(m5={"health": cut}))["health"].findings


def test_the_quarantine_begins_with_what_is_most_certain():
    made = fleet(
        m0=None, m1={"step_ms": 150.0}, m2={"fingerprint": "b" * 64, "step_ms": 150.0},
        m4={"verdict": "NO-GO", "reasons": ["steps failed"]},
    )  # fmt: skip
    found = quarantine(judged_fleet(made))
    assert [(one.member.rank if one.member else None) for one in found] == [2, 4, None, 1]
    assert "fingerprints" in found[0].why
    assert "speed" in found[0].why


def test_a_quorum_lets_the_rest_go_and_takes_out_whom_a_rule_names(tmp_path):
    broken = {"m0": None, "m1": {"step_ms": 150.0}, "m2": {"fingerprint": "b" * 64}}
    run = saved(fleet(quorum=5, **broken), tmp_path)
    assert run.verdict == "GO"
    assert {gate.name for gate in run.gates if gate.required} == {"quorum"}
    assert next(gate for gate in run.gates if gate.name == "fingerprints").outcome == FAIL
    assert len(quarantine(judged_fleet(fleet(quorum=5, **broken)))) == 3


def test_too_few_healthy_members_for_the_quorum_are_no_go(tmp_path):
    run = saved(fleet(quorum=8, m2={"fingerprint": "b" * 64}), tmp_path)
    assert (run.verdict, run.summary["reasons"][0][:20]) == ("NO-GO", "quorum failed at 7 h")


def test_an_empty_fleet_is_never_go(tmp_path):
    made = fleet(0, expected=Expected(0))
    assert saved(made, tmp_path).verdict == "INCOMPLETE"
