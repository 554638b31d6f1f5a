"""What ranks share, predicted by one process without data, against real ranks over gloo: meter, and counted bytes."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from nsa_lib.contract.allocator import MIB
from nsa_lib.contract.heartbeat import HeartbeatReader
from nsa_lib.runs.environment import PROJECT
from nsa_lib.worker.prediction.predict import predict
from tests.worker.ranks.cases import PAIR, run_pair

BARE = {"profile_operators": False, "digest_parts": 0, "steps": 8}

TOKENS_MIB = 0.003
"""The batch and what is read off it, which a prediction counts once used."""


@pytest.mark.parametrize(
    ("strategy", "ranks", "grad_checkpointing"),
    [("ddp", 2, True), ("fsdp2", 2, False), ("fsdp2", 3, True)],
    ids=["ddp", "fsdp2", "fsdp2-padded"],
)
def test_the_meter_of_real_ranks_equals_the_prediction(tmp_path, strategy, ranks, grad_checkpointing):
    changes = {**BARE, "strategy": strategy, "ranks": ranks, "batch": ranks, "grad_checkpointing": grad_checkpointing}
    expected = predict(replace(PAIR, **changes))
    result = run_pair(tmp_path, **changes)
    assert result["status"] == "ok", result["reason"]
    beats = [beat for beat in HeartbeatReader(tmp_path / "rank0" / "heartbeat.jsonl").read() if beat["step"]]
    settled = beats[1:]  # the first step makes the optimizer's state
    for name in ("peak_alloc_forward_mib", "peak_alloc_backward_mib", "peak_alloc_optimizer_mib", "alloc_mib"):
        # In some steps gloo keeps the copy that it reduces for longer.
        assert min(beat[name] for beat in settled) == pytest.approx(expected[name], abs=TOKENS_MIB), name
    if not grad_checkpointing:  # the peak is where blocks are gathered and nothing was reduced yet: that of every step
        for beat in settled:
            assert beat["peak_alloc_mib"] == pytest.approx(expected["peak_alloc_mib"], abs=TOKENS_MIB), beat["step"]


@pytest.fixture(scope="module")
def counted():
    """The bytes that two real ranks hold, counted tensor by tensor (`real_ranks.py`)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--module"]
    said = subprocess.run(
        [*command, "tests.worker.prediction.real_ranks"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return json.loads(next(line for line in said.stdout.splitlines() if line.startswith("{")))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_state_and_buffers_are_the_bytes_of_real_tensors(counted, strategy):
    found = predict(replace(PAIR, **BARE, strategy=strategy))
    rounding = 512 * 3 * 40 / MIB  # what the allocator adds to each tensor at most
    for term in ("parameters", "gradients", "optimizer"):
        assert 0 <= found["terms"]["optimizer"][term] - counted[strategy][term] / MIB < rounding, term
    if strategy == "ddp":
        buckets = counted["ddp"]["buckets"]
        assert sum(buckets) == counted["ddp"]["gradients"], "gradients are views of the buckets, and nothing besides"
        assert found["terms"]["forward"]["gradients"] == found["terms"]["optimizer"]["gradients"], "they stay"
        assert found["terms"]["backward"]["communication"] == 0
    else:
        assert found["terms"]["backward"]["communication"] > counted["fsdp2"]["gathered"] / MIB > 0
