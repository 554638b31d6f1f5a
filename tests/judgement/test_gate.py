"""The verdict over some gates."""

import pytest

from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, GateResult, standing, verdict


def gate(outcome, *, required=True):
    return GateResult(f"gate_{outcome}", required, outcome, detail="so")


@pytest.mark.parametrize(
    ("decisive", "found"),
    [(FAIL, "NO-GO"), (NOT_RUN, "INCOMPLETE"), (WARN, "REVIEW"), (PASS, "GO")],
)
def test_the_words_come_in_their_order(decisive, found):
    order = [FAIL, NOT_RUN, WARN, PASS]
    gates = [gate(outcome) for outcome in order[order.index(decisive) :]]
    for arranged in (gates, gates[::-1]):
        word, reasons = verdict(arranged)
        assert word == found
        said = {FAIL: "failed", WARN: "warns", NOT_RUN: "did not run"}
        assert reasons == ([] if found == "GO" else [f"gate_{decisive} {said[decisive]}: so"])


def test_what_is_not_required_neither_fails_nor_completes_a_run():
    optional = [gate(FAIL, required=False), gate(NOT_RUN, required=False), gate(PASS, required=False)]
    assert verdict([gate(PASS), *optional]) == ("GO", [])
    assert verdict(optional)[0] == "INCOMPLETE"


def test_any_warning_is_for_a_person_to_see():
    assert verdict([gate(PASS), gate(WARN, required=False)])[0] == "REVIEW"


def test_no_gate_is_no_go_ahead():
    assert verdict([])[0] == "INCOMPLETE"


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("outcome", [PASS, WARN, FAIL, NOT_RUN])
def test_one_gate_stands_for_its_run_as_it_stands_in_junit(outcome, required):
    """A verdict of one gate beside a required one that passed, from the standing alone."""
    words = {"passed": "GO", "shown": "GO", "warning": "REVIEW", "failure": "NO-GO", "error": "INCOMPLETE"}
    gates = [GateResult("sound", True, PASS), GateResult("one", required, outcome)]
    assert verdict(gates)[0] == words[standing(outcome, required)]
