"""A case with a fault planted, in this process."""

import json
from contextlib import contextmanager
from dataclasses import replace

from nsa_lib.contract.heartbeat import HeartbeatReader
from nsa_lib.worker import faults
from nsa_lib.worker.loop import run_to_result
from tests.subject.test_config import CASE


def train(folder, fault, *, steps=8, **changes):
    """Run a case with a fault in this process; its result and the beats of its steps."""
    (folder / "case.json").write_text(replace(CASE, fault=fault, steps=steps, **changes).to_json())
    run_to_result(folder / "case.json")
    return json.loads((folder / "result.json").read_text()), beats(folder)


def beats(folder):
    return [beat for beat in HeartbeatReader(folder / "heartbeat.jsonl").read() if beat["step"]]


def model(backend="masked", **changes):
    return replace(CASE.model, backend=backend, **changes)


@contextmanager
def planted(fault, **changes):
    with faults.planted(replace(CASE, fault=fault, **changes)):
        yield
