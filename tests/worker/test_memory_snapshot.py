"""What a case leaves for people who look into its memory: the meter's figures, in files that others read."""

import gzip
import json
import pickle
from collections import Counter
from dataclasses import replace

import pytest
import torch

from nsa_lib.contract.allocator import MIB
from nsa_lib.contract.case import SNAPSHOT_STEPS, CaseConfig
from nsa_lib.contract.heartbeat import Heartbeat, HeartbeatReader
from nsa_lib.subject.config import ModelConfig, NSAConfig
from nsa_lib.worker.loop import run_case
from nsa_lib.worker.memory_snapshot import RECORDED_STEP, SNAPSHOT, TRACE, levels_of
from nsa_lib.worker.prediction.predict import predict

PHASES = ("forward", "backward", "optimizer")

CASE = CaseConfig(
    case_id="snapshot", work="snapshot", steps=SNAPSHOT_STEPS, warmup_steps=0, seq_len=128, batch=1, dtype="float32",
    grad_checkpointing=True, lr=1e-3, seed=0, device="cpu",
    model=ModelConfig(
        layers=2, vocab=64,
        nsa=NSAConfig(dim=32, heads=2, groups=2, d_k=16, d_v=16, l=16, d=16, l_sel=32, n_sel=3, w=32),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The folder of a snapshot, its facts and the beat of the recorded step."""
    folder, facts = tmp_path_factory.mktemp("snapshot"), {}
    for known in run_case(CASE, Heartbeat(folder / "heartbeat.jsonl")):
        facts |= known
    beats = {beat["step"]: beat for beat in HeartbeatReader(folder / "heartbeat.jsonl").read()}
    assert set(beats) >= set(range(1, SNAPSHOT_STEPS + 1))
    return folder, facts, beats[RECORDED_STEP]


def test_the_curve_has_the_peaks_that_the_meter_read_in_every_phase(left):
    _, facts, beat = left
    phases = facts["allocations"]["phases"]
    assert tuple(phases) == PHASES
    for phase in PHASES:
        assert max(phases[phase]["mib"]) == pytest.approx(beat[f"peak_alloc_{phase}_mib"])
        assert phases[phase]["at"][-1] == phases[phase]["events"] > 20
        assert len(phases[phase]["at"]) <= 500


def test_the_prediction_follows_it_from_allocation_to_allocation(left):
    _, facts, _ = left
    predicted, measured = predict(CASE)["allocations"], facts["allocations"]["phases"]
    for phase in PHASES:
        assert max(predicted[phase]["mib"]) == pytest.approx(max(measured[phase]["mib"]), rel=0.01)
        assert predicted[phase]["mib"][-1] == pytest.approx(measured[phase]["mib"][-1], rel=0.01)
    assert "allocations" not in predict(replace(CASE, work="train")), "only where it is asked for"


def test_the_viewer_gets_every_allocation_of_the_step_and_what_was_there_before(left):
    folder, _, beat = left
    snapshot = pickle.loads((folder / SNAPSHOT).read_bytes())
    (events,) = snapshot["device_traces"]
    held, peak = {}, 0
    for event in events:
        if event["action"] == "alloc":
            assert event["addr"] not in held
            held[event["addr"]] = event["size"]
        else:
            assert held.pop(event["addr"]) == event["size"]
        peak = max(peak, sum(held.values()))
    assert peak / MIB == pytest.approx(beat["peak_alloc_mib"])
    named = Counter(event["frames"][0]["name"] for event in events)
    assert named["aten::mm"] + named["aten::addmm"] > 5
    # torch's own reader of snapshots takes it.
    assert f"{len(events)} entries" in torch.cuda._memory_viz.trace(snapshot)


def test_the_trace_is_of_two_steps(left):
    folder, *_ = left
    events = json.loads(gzip.decompress((folder / TRACE).read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "Optimizer.step#AdamW.step" for event in events) == 2


def test_a_trace_of_torchs_allocator_is_parted_at_the_ends_of_the_phases():
    def event(action, size, time_us):
        return {"action": action, "size": size, "time_us": time_us}

    events = [
        event("alloc", 100, 1), event("segment_alloc", 4096, 1), event("alloc", 50, 2), event("free_requested", 50, 3),
        event("free_completed", 50, 4), event("alloc", 7, 6), event("free_completed", 100, 12), event("alloc", 9, 21),
    ]  # fmt: skip
    ends = {"forward": 5, "backward": 10, "optimizer": 20}
    assert levels_of(events, 1000, ends) == {
        "forward": [1000, 1100, 1150, 1100], "backward": [1100, 1107], "optimizer": [1107, 1007],
    }  # fmt: skip
    assert levels_of([], 5, ends) == {"forward": [5], "backward": [5], "optimizer": [5]}
