"""Steps of one kind do the same work: against the order in which a timing really goes through its contestants."""

import json
from dataclasses import replace

from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.contract.step_kinds import step_kinds
from nsa_lib.worker.timing import run_timing
from tests.subject.test_config import CASE


def test_a_timing_goes_through_its_contestants_as_it_says(tmp_path):
    case = replace(CASE, work="timing", seq_len=64, seq_lens=(32, 64), backends=("masked", "gather"), steps=4 * 13)
    run_timing(case, Heartbeat(tmp_path / "heartbeat.jsonl"))
    beats = [json.loads(line) for line in (tmp_path / "heartbeat.jsonl").read_text().splitlines()]
    fields = ("subject", "branches", "backend", "seq_len")
    ran = [tuple(beat[name] for name in fields) for beat in beats if beat["step"] is not None]
    assert [tuple(getattr(kind, name) for name in fields) for kind in step_kinds(case)] == ran


def test_checks_are_each_of_their_own_kind_and_steps_of_a_training_are_alike():
    assert len(set(step_kinds(replace(CASE, work="checks", steps=5)))) == 5
    assert len(set(step_kinds(replace(CASE, steps=50)))) == 1
