"""Every check of a preflight holds on the attention as it is, fails with its fault, and is recorded in its order."""

from dataclasses import replace

import pytest

from nsa_lib.contract.agenda import check_names
from nsa_lib.contract.heartbeat import Heartbeat, HeartbeatReader
from nsa_lib.subject.config import BACKEND_NAMES
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import preflight
from nsa_lib.worker.preflight import GROUPS, run_checks
from tests.worker.preflight.planted import CASE, CHECKS, TINY_CASE, check_all, found, of_fused


@pytest.mark.parametrize("name", CHECKS["subject"])
def test_a_check_holds_on_the_attention_as_it_is(name):
    finding = found(name)
    assert finding.holds, finding


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", ["selected_packed", "attention_gather", "selection", "rope_distance", "checkpointing"])
def test_the_budget_is_that_of_the_dtype(name, dtype):
    finding = found(name, dtype=dtype)
    assert finding.holds, finding
    if name != "selection":
        assert finding.limit < (1e-9 if dtype == "float64" else 0.2)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("selected_masked", "first_key"),
        ("attention_masked", "first_key"),
        ("past_slc_masked", "first_key"),
        ("route_masked", "wrong_backend"),
        ("selection", "future_leak"),
        ("future_masked", "future_leak"),
        ("gradients", "dead_parameter"),
        ("checkpointing", "late_binding"),
    ],
)
def test_a_seeded_fault_is_found(name, fault):
    finding = found(name, fault)
    assert not finding.holds, finding


OF_FUSED = [name for name in check_names()["subject"] if name not in CHECKS["subject"]]


@pytest.mark.parametrize("name", [*OF_FUSED, "gradients", "checkpointing"])
def test_a_check_of_fused_holds_on_what_computes_the_same(plain_fused, name):
    finding = of_fused(name)
    assert finding.holds, finding


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("selected_fused", "first_key"),
        ("attention_fused", "first_key"),
        ("past_slc_fused", "first_key"),
        ("route_fused", "wrong_backend"),
        ("selection_fused", "future_leak"),
        ("future_fused", "future_leak"),
        ("gradients", "dead_parameter"),
        ("checkpointing", "late_binding"),
    ],
)
def test_a_seeded_fault_is_found_with_fused(plain_fused, name, fault):
    finding = of_fused(name, fault)
    assert not finding.holds, finding


def test_every_check_holds_where_blocks_of_keys_overlap():
    broken = {name: found for name, found in check_all(TINY_CASE, *CHECKS["subject"]).items() if not found.holds}
    assert not broken


@pytest.mark.parametrize("group", CHECKS)
def test_a_group_makes_the_checks_that_are_named_and_no_others(group):
    assert set(GROUPS[group](replace(CASE, case_id=group), lambda: None)) == set(CHECKS[group])


def test_there_is_a_check_of_every_backend():
    for kind in ("selected", "attention", "future", "past_slc", "route"):
        assert {f"{kind}_{backend}" for backend in BACKEND_NAMES} <= set(check_names()["subject"])


def test_a_case_records_its_checks_in_order_with_a_beat_each(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_names", lambda backends, **_: {"subject": ("route_masked", "gradients")})
    facts = {}
    for known in run_checks(CASE, Heartbeat(tmp_path / "heartbeat.jsonl")):
        facts.update(known)
    assert [check["name"] for check in facts["checks"]] == ["route_masked", "gradients"]
    beats = HeartbeatReader(tmp_path / "heartbeat.jsonl").read()
    assert [beat["step"] for beat in beats] == [1, 2]


def test_checks_made_before_a_crash_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_names", lambda backends, **_: {"subject": ("route_masked", "gradients")})
    monkeypatch.setattr(TinyLM, "hidden", lambda model, tokens: 1 / 0)
    known = []
    with pytest.raises(ZeroDivisionError):
        known.extend(run_checks(CASE, Heartbeat(tmp_path / "heartbeat.jsonl")))
    assert [check["name"] for check in known[-1]["checks"]] == ["route_masked"]
