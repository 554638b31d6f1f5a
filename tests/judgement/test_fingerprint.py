"""The gates over fingerprints: what differs is found and its cause named, and what cannot be compared says why."""

import json

import pytest

from nsa_lib.judgement.fingerprint import PERSISTENT, SOFTWARE, TRANSIENT, cause_of, kept_bits_gate, same_bits_gate
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


def kept_bits(run, place):
    return kept_bits_gate(run, "training", str(place))


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


@pytest.fixture
def kept(tmp_path):
    """A healthy smoke's fingerprint, kept."""
    return keep(healthy("laptop").case("training")["fingerprint"], tmp_path / "kept")


@pytest.mark.parametrize("named", [lambda path: path, lambda path: path.parent], ids=["file", "folder"])
def test_the_bits_that_were_kept_pass(kept, named):
    assert kept_bits(healthy("laptop", steps=60), named(kept)).outcome == PASS


def test_other_bits_than_were_kept_fail(kept):
    run = healthy("laptop")
    found = run.case("training")["fingerprint"]
    gate = kept_bits(with_case(run, "training", fingerprint={**found, "losses": ["other", *found["losses"][1:]]}), kept)
    assert (gate.outcome, gate.required) == (FAIL, True)
    assert "step 1, loss" in gate.detail


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"device_kind": "another GPU"}, "device_kind a core, kept another GPU"),
        ({"driver": "570.1"}, "driver None, kept 570.1"),
        ({"package_sha256": "c" * 64}, "package_sha256 None, kept cccccccc;"),
        ({"triton": "2.0", "torch": "2.5"}, "torch 2.13.0, kept 2.5; triton None, kept 2.0"),
    ],
)
def test_a_fingerprint_of_another_kind_is_not_compared_and_says_in_what(kept, changed, told):
    found = json.loads(kept.read_text())
    kept.write_text(json.dumps({**found, "of": {**found["of"], **changed}}))
    gate = kept_bits(healthy("laptop"), kept)
    assert (gate.outcome, gate.required) == (NOT_RUN, True)
    assert told.rstrip(";") in gate.detail


def test_of_several_that_are_kept_the_one_of_this_kind_is_taken(kept):
    found = json.loads(kept.read_text())
    other = {**found, "of": {**found["of"], "device_kind": "a GPU"}, "losses": []}
    assert keep(other, kept.parent) != kept
    assert kept_bits(healthy("laptop"), kept.parent).outcome == PASS


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 2, "of": {}}'])
def test_a_file_that_is_no_fingerprint_is_named(tmp_path, text):
    path = tmp_path / "kept.json"
    path.write_text(text)
    gate = kept_bits(healthy("laptop"), path)
    assert gate.outcome == NOT_RUN
    assert str(path) in gate.detail


def test_an_empty_folder_keeps_nothing(tmp_path):
    assert "no fingerprint is kept" in kept_bits(healthy("laptop"), tmp_path).detail
