"""The gates over fingerprints: what differs is found and its cause named, and what cannot be compared says why."""

import json
from dataclasses import replace

import pytest

from nsa_lib.contract.fingerprint import KEPT
from nsa_lib.judgement.fingerprint import (
    PERSISTENT,
    SOFTWARE,
    TRANSIENT,
    cause_beside_kept,
    cause_of,
    kept_bits_gate,
    same_bits_gate,
)
from nsa_lib.judgement.gate import FAIL, FAILED_STATUSES, NOT_RUN, PASS
from nsa_lib.runs.fingerprints import keep
from tests.made import with_case
from tests.workbook.smoke.made import healthy, with_other_bits

HERE, OTHER = {"place": "cuda:0"}, {"place": "cuda:1"}


def take(bits, where=HERE):
    """Return a take of two steps whose second loss has some bits."""
    steps = {str(step): {"layers": {}, "parameters": "p"} for step in (1, 2)}
    return {"where": where, "losses": ["1", bits], "steps": steps, "again": []}


def took(first, again, here="", other=""):
    """Return two takes that came first and second, the second with further ones, a letter each."""
    more = [take(bits) for bits in here] + [take(bits, OTHER) for bits in other]
    return take(first), {**take(again), "again": more}


@pytest.mark.parametrize(
    ("takes", "cause"),
    [
        (took("a", "b", "bbb", "bbb"), TRANSIENT),
        (took("a", "b", "aaa", "aaa"), TRANSIENT),
        (took("a", "b", "aaa"), TRANSIENT),
        (took("a", "b", "cde", "fff"), PERSISTENT),
        (took("a", "b", "bbb", "fff"), PERSISTENT),
        (took("a", "b", "aba", "aaa"), PERSISTENT),
        (took("a", "b", "ccc", "ccc"), PERSISTENT),
        (took("a", "b", "cde", "fgh"), SOFTWARE),
        (took("a", "b", "bbb", "bba"), SOFTWARE),
        (took("a", "b", "cde"), f"{PERSISTENT} or {SOFTWARE}"),
        (took("a", "b"), f"{PERSISTENT} or {TRANSIENT} or {SOFTWARE}"),
    ],
)
def test_further_takes_tell_the_cause(takes, cause):
    assert cause_of(*takes)[0] == cause


def same_bits(run):
    return same_bits_gate(run, "training", "hot")


def kept_bits(run, kept):
    """Judge a run beside whose cases lies what was kept."""
    return kept_bits_gate(replace(run, folder=kept.parent.parent), "training", "hot")


def test_a_transient_error_says_which_case_was_wrong():
    assert "the first case was wrong once" in cause_of(*took("a", "b", "bbb", "bbb"))[1]
    assert "the second case was wrong once" in cause_of(*took("a", "b", "aaa"))[1]


def test_the_same_bits_pass_and_others_fail_with_where_and_why():
    assert same_bits(healthy("laptop")).outcome == PASS
    gate = same_bits(with_other_bits(healthy("laptop"), 2))
    assert (gate.outcome, gate.required) == (FAIL, True)
    assert "step 2, loss has other bits in hot than in training" in gate.detail


def test_kernels_without_an_order_of_sums_are_not_compared_and_say_so():
    gate = same_bits(healthy("checklist"))
    assert (gate.outcome, gate.required) == (NOT_RUN, False)
    assert "backend=masked" in gate.detail
    assert same_bits(healthy("checklist", backend="fused")).outcome == PASS
    assert "compile=True" in same_bits(healthy("checklist", backend="fused", compile=True)).detail


@pytest.mark.parametrize("status", FAILED_STATUSES)
def test_a_second_case_that_dies_fails(status):
    assert same_bits(with_case(healthy("laptop"), "hot", status=status, reason="x")).outcome == FAIL


@pytest.mark.parametrize("case_id", ["training", "hot"])
def test_without_both_fingerprints_nothing_is_judged(case_id):
    gate = same_bits(with_case(healthy("laptop"), case_id, fingerprint=None))
    assert (gate.outcome, gate.required) == (NOT_RUN, True)
    assert case_id in gate.detail


def test_fewer_steps_than_were_to_be_taken_again_are_not_judged():
    again = healthy("laptop").case("hot")["fingerprint"]
    gate = same_bits(with_case(healthy("laptop"), "hot", fingerprint={**again, "losses": again["losses"][:1]}))
    assert (gate.outcome, gate.detail) == (NOT_RUN, "1 step taken again, 3 are due")


def test_hashes_that_are_all_one_say_nothing():
    found = healthy("laptop").case("training")["fingerprint"]
    layers = {"0": {"output": "0", "choice": "0", "gradients": "0"}}
    same = {**found, "steps": {step: {"layers": layers, "parameters": "0"} for step in found["steps"]}}
    run = with_case(with_case(healthy("laptop"), "training", fingerprint=same), "hot", fingerprint=same)
    assert same_bits(run).outcome == NOT_RUN


@pytest.fixture
def kept(tmp_path):
    """A healthy smoke's fingerprint, kept."""
    return keep(healthy("laptop").case("training")["fingerprint"], tmp_path / KEPT)


def test_the_bits_that_were_kept_pass_over_the_steps_that_both_have(kept):
    gate = kept_bits(healthy("laptop", steps=60), kept)
    assert (gate.outcome, gate.required) == (PASS, True)
    assert gate.detail.startswith("60 steps, ")


def with_loss(run, step, again=()):
    """Return a smoke whose training has another loss in a step, and what further takes gave."""
    found, hot = (run.case(name)["fingerprint"] for name in ("training", "hot"))
    losses = [*found["losses"][: step - 1], "another", *found["losses"][step:]]
    run = with_case(run, "training", fingerprint={**found, "losses": losses})
    return with_case(run, "hot", fingerprint={**hot, "again": list(again)})


@pytest.mark.parametrize("step", [1, 42, 100])
def test_one_loss_that_differs_from_what_was_kept_fails_at_any_step(kept, step):
    gate = kept_bits(with_loss(healthy("laptop"), step), kept)
    assert (gate.outcome, gate.required) == (FAIL, True)
    assert f"step {step}, loss has other bits than {kept.name}" in gate.detail


def test_a_difference_that_the_repeated_steps_cannot_see_is_found_and_its_cause_told(kept):
    run = healthy("laptop")
    takes = [{**run.case("training")["fingerprint"], "where": place} for place in (HERE, OTHER) for _ in range(3)]
    run = with_loss(run, 42, takes)
    assert same_bits(run).outcome == PASS
    assert f"{TRANSIENT}: step 42" in kept_bits(run, kept).detail


@pytest.mark.parametrize(
    ("here", "other", "cause"),
    [
        ("aaa", "aaa", TRANSIENT),
        ("aaa", "", TRANSIENT),
        ("bbb", "aaa", PERSISTENT),
        ("bcd", "aaa", PERSISTENT),
        ("bbb", "bbb", SOFTWARE),
        ("bbb", "bcd", SOFTWARE),
        ("bbb", "", f"{PERSISTENT} or {SOFTWARE}"),
        ("bcd", "", f"{PERSISTENT} or {SOFTWARE}"),
        ("", "", f"{PERSISTENT} or {TRANSIENT} or {SOFTWARE}"),
    ],
)
def test_further_takes_tell_the_cause_of_a_difference_from_what_was_kept(here, other, cause):
    assert cause_beside_kept(take("a"), took("b", "b", here, other)[1]["again"])[0] == cause


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"device_kind": "another GPU"}, "device_kind a core, kept another GPU"),
        ({"driver": "570.1"}, "driver None, kept 570.1"),
        ({"package_sha256": "c" * 64}, "package_sha256 None, kept cccccccc"),
        ({"data_sha256": "d" * 64}, "data_sha256 None, kept dddddddd"),
        ({"triton": "2.0", "torch": "2.5"}, "torch 2.13.0, kept 2.5; triton None, kept 2.0"),
    ],
)
def test_a_fingerprint_of_another_kind_is_not_compared_and_says_in_what(kept, changed, told):
    found = json.loads(kept.read_text())
    kept.write_text(json.dumps({**found, "of": {**found["of"], **changed}}))
    gate = kept_bits(healthy("laptop"), kept)
    assert (gate.outcome, gate.required) == (NOT_RUN, True)
    assert told in gate.detail


def test_of_several_that_are_kept_the_one_of_this_kind_is_taken(kept):
    found = json.loads(kept.read_text())
    other = {**found, "of": {**found["of"], "device_kind": "a GPU"}, "losses": ["other"]}
    assert keep(other, kept.parent) != kept
    assert kept_bits(healthy("laptop"), kept).outcome == PASS


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 2, "of": {}}'])
def test_a_file_that_is_no_fingerprint_is_named(kept, text):
    kept.write_text(text)
    gate = kept_bits(healthy("laptop"), kept)
    assert gate.outcome == NOT_RUN
    assert str(kept) in gate.detail


def test_what_was_lost_or_has_no_step_is_no_pass(kept):
    found = json.loads(kept.read_text())
    kept.write_text(json.dumps({**found, "losses": []}))
    assert "no step" in kept_bits(healthy("laptop"), kept).detail
    assert kept_bits(healthy("laptop"), kept).outcome == NOT_RUN
    kept.unlink()
    gate = kept_bits(healthy("laptop"), kept)
    assert (gate.outcome, gate.required) == (NOT_RUN, True)
    assert "no fingerprint is kept" in gate.detail
    assert kept_bits(with_case(healthy("laptop"), "training", fingerprint=None), kept).outcome == NOT_RUN


def test_a_training_that_was_cut_short_does_not_pass(kept):
    run = with_case(healthy("laptop"), "training", status="interrupted")
    assert kept_bits(run, kept).outcome == NOT_RUN


def test_a_smoke_is_judged_by_what_was_kept_if_it_was_given_something():
    assert "kept_bits" not in [gate.name for gate in healthy("laptop").gates]
    (gate,) = [gate for gate in healthy("laptop", fingerprint="kept").gates if gate.name == "kept_bits"]
    assert (gate.outcome, gate.required) == (NOT_RUN, True)
