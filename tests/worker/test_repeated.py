"""First steps taken again: the same bits from honest code, and from a planted fault the cause of others."""

import json
from dataclasses import replace

import pytest
import torch

from nsa_lib.contract.fingerprint import FILE, KEPT, first_difference, parting
from nsa_lib.contract.heartbeat import HeartbeatReader
from nsa_lib.judgement.fingerprint import PERSISTENT, SOFTWARE, TRANSIENT, cause_beside_kept, cause_of
from nsa_lib.runs.fingerprints import read_fingerprint
from nsa_lib.subject import training
from nsa_lib.worker import places
from nsa_lib.worker.loop import run_to_result
from tests.subject.test_config import CASE


def ran(folder, case):
    """Run a case in this process; return its fingerprint."""
    own = folder / case.case_id
    own.mkdir()
    (own / "case.json").write_text(case.to_json())
    run_to_result(own / "case.json")
    assert json.loads((own / "result.json").read_text())["status"] == "ok"
    return read_fingerprint(own / FILE)


def both(folder, **changes):
    """Return the fingerprints of a training and of the case that repeats it."""
    training = replace(CASE, fingerprint=True, **{"steps": 6, **changes})
    repeated = replace(training, case_id="hot", work="repeat", repeats=training.case_id, steps=3)
    return ran(folder, training), ran(folder, repeated)


@pytest.mark.parametrize("backend", ["masked", "gather", "packed"])
def test_honest_code_gives_the_same_bits_and_nothing_is_taken_more_often(tmp_path, backend):
    first, again = both(tmp_path, model=replace(CASE.model, backend=backend))
    assert first_difference(first, again) == ""
    assert not again["again"]
    assert set(again["steps"]) == {"1", "2", "3"} <= set(first["steps"])
    beats = [beat["step"] for beat in HeartbeatReader(tmp_path / "hot" / "heartbeat.jsonl").read() if beat["step"]]
    assert beats == [1, 2, 3]


def test_recording_and_meters_change_no_bit(tmp_path):
    first, again = both(tmp_path, attest=True, profile_operators=True, steps=14)
    assert first_difference(first, again) == ""


@pytest.mark.parametrize(
    ("fault", "cause"), [("bit_once", TRANSIENT), ("stuck_bit", PERSISTENT), ("unordered_sum", SOFTWARE)]
)
def test_the_cause_of_a_difference_is_found(tmp_path, fault, cause):
    if len(places.CORES) < 2:
        pytest.skip("one core: there is no other place")
    first, again = both(tmp_path, fault=fault)
    assert first_difference(first, again)
    assert cause_of(first, again)[0] == cause
    assert len(again["again"]) == 6


def test_without_another_place_a_defect_is_not_told_from_software(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "CORES", places.CORES[:1])
    first, again = both(tmp_path, fault="unordered_sum")
    assert cause_of(first, again)[0] == f"{PERSISTENT} or {SOFTWARE}"


def test_a_training_that_left_no_fingerprint_is_compared_with_nothing(tmp_path):
    case = replace(CASE, case_id="hot", work="repeat", repeats="training", steps=3, fingerprint=True)
    assert not ran(tmp_path, case)["again"]


def test_a_place_is_left_as_it_was():
    before = places.here("cpu")
    with places.at(places.places("cpu")[-1]):
        assert places.here("cpu") == places.places("cpu")[-1]
    assert places.here("cpu") == before


def in_run(folder, case, kept=None):
    """Run a case as one of a run that is compared with what was kept; return its fingerprint."""
    (folder / "cases").mkdir(exist_ok=True)
    (folder / KEPT).mkdir(exist_ok=True)
    if kept:
        (folder / KEPT / "one.json").write_text(json.dumps(kept))
    return ran(folder / "cases", case)


def flipped_in(monkeypatch, step):
    """Flip a bit of the gradient of one step, once, which only what was kept can show."""
    original, calls = training.grad_norm, iter(range(1, 1000))

    def norm(model):
        if next(calls) == step:
            model.attention_layers[0].out.weight.grad.view(-1)[:1].view(torch.int32).bitwise_xor_(1 << 12)
        return original(model)

    monkeypatch.setattr(training, "grad_norm", norm)


TRAINING = replace(CASE, fingerprint=True, steps=8)

REPEATED = replace(TRAINING, case_id="hot", work="repeat", repeats=TRAINING.case_id, steps=3)


def test_a_difference_from_what_was_kept_is_taken_again_up_to_its_step(tmp_path, monkeypatch):
    kept = ran(tmp_path, TRAINING)
    folder = tmp_path / "run"
    folder.mkdir()
    flipped_in(monkeypatch, 5)
    first = in_run(folder, TRAINING, kept)
    again = in_run(folder, REPEATED)
    assert first_difference(first, again) == "", "within the steps that are always taken again"
    step, _ = parting(first, kept)
    assert step >= 5
    assert {len(take["losses"]) for take in again["again"]} == {step}
    assert cause_beside_kept(kept, again["again"])[0] == TRANSIENT


def test_what_was_kept_of_another_run_is_no_reason_to_take_steps_again(tmp_path, monkeypatch):
    kept = ran(tmp_path, TRAINING)
    folder = tmp_path / "run"
    folder.mkdir()
    flipped_in(monkeypatch, 5)
    in_run(folder, TRAINING, {**kept, "of": {**kept["of"], "torch": "2.5.1"}})
    assert in_run(folder, REPEATED)["again"] == []
