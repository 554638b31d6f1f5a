"""A training whose steps are replays of a CUDA graph is the same training, and is judged as any; needs a GPU."""

from dataclasses import replace

import pytest
import torch

from nsa_lib.contract.case import CAPTURED_STEP, GRAPH, CaseConfig
from nsa_lib.worker import loop
from tests.worker.attestation.attested import LENGTH, LR, config

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of modules that torch imports to compile
    pytest.mark.filterwarnings("ignore:Profiler record function"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]

STEPS = 12


def trained(tmp_path, *, backend="masked", **changes):
    """Run a case; return its heartbeats and its facts."""
    case = CaseConfig(
        case_id="training", model=replace(config(), backend=backend), seq_len=LENGTH, batch=1, steps=STEPS,
        dtype="float32", grad_checkpointing=True, lr=LR, seed=0, device="cuda", attest=True, show_fresh=True,
    )  # fmt: skip
    beats, facts = [], {}

    class Heartbeat:
        def beat(self, phase, step=None, **figures):
            beats.append({"step": step, **figures})

    for known in loop.run_case(replace(case, **changes), Heartbeat()):
        facts |= known
    return [beat for beat in beats if beat["step"]], facts


@pytest.mark.parametrize("backend", ["masked", "packed", "gather"])
def test_replayed_steps_are_judged_and_train_as_eager_ones(tmp_path, backend):
    plain, _ = trained(tmp_path, backend=backend)
    replayed, facts = trained(tmp_path, backend=backend, compile=GRAPH)
    assert [step["step"] for step in facts["attestation"]] == [1, CAPTURED_STEP, (1 + STEPS) // 2, STEPS]
    for step in facts["attestation"]:
        assert not any(step["wrong"].values()), step["wrong"]
        assert all(part["why_not"] is None for part in step["coverage"])
    assert [len(step["layers"]) for step in facts["attestation"]] == [2, 2, 0, 2]
    assert all(step["routes"] == [[backend]] * 2 and step["passes"] == [2, 2] for step in facts["executed"])
    assert [b["loss"] for b in replayed] == pytest.approx([b["loss"] for b in plain], rel=1e-3)
    peaks = {b["peak_alloc_mib"] for b in replayed[CAPTURED_STEP:]}
    assert len(peaks) == 1
    assert peaks.pop() > facts["state_mib"]
    assert len(set(facts["fresh_tokens"]["losses"])) == 3
