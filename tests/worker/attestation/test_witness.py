"""A case's own first, middle and last step are recorded and judged, and no other."""

import json

import pytest
import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject import training
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import data
from nsa_lib.worker.attestation import Witness
from tests.worker.attestation.attested import CHUNK, LENGTH, LR, config


def witnessed(*, work="train", steps=5, spoilt_step=None):
    """Run a case's loop with a witness; return what it found, and the steps that took longer for it."""
    case = CaseConfig(
        case_id="training", work=work, model=config(), seq_len=LENGTH, batch=1, steps=steps, dtype="float32",
        grad_checkpointing=True, lr=LR, seed=0, device="cpu", loss_chunk=CHUNK, attest=True,
    )  # fmt: skip
    torch.manual_seed(case.seed)
    model, batches, witness = TinyLM(case.model, grad_checkpointing=True), data.batches(case), Witness(case, dict)
    optimizer = training.make_optimizer(model, case.lr) if work == "train" else None
    for step in range(1, steps + 1):
        tokens = next(batches)
        with witness.watching(step, model, tokens, optimizer):
            if step == spoilt_step:
                tokens = tokens.roll(1, dims=1)
            if optimizer is None:
                result = training.backward_step(model, tokens, loss_chunk=CHUNK)
            else:
                result = training.train_step(model, optimizer, tokens, loss_chunk=CHUNK)
        witness.returned(step, result.loss.item())
    return witness.judge("cpu")


@pytest.mark.parametrize("work", ["train", "backward"])
def test_first_middle_and_last_step_are_judged(work):
    found = witnessed(work=work)
    assert [one["step"] for one in found] == [1, 3, 5]
    assert not any(area for one in found for area in one["wrong"].values())
    assert [len(one["layers"]) for one in found] == [2, 0, 2]
    assert found[1]["compared"].startswith("the train step alone")
    assert [one["update"] is None for one in found] == [work == "backward"] * 3
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_are_all_judged(steps):
    found = witnessed(steps=steps)
    assert [one["step"] for one in found] == list(range(1, steps + 1))
    assert all(one["layers"] for one in found)


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_step_on_other_tokens_is_found_where_it_happened(step):
    found = witnessed(spoilt_step=step)
    wrong = {one["step"] for one in found if any(one["wrong"].values())}
    assert wrong == {step}
