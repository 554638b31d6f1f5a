"""A case's own first, last and one other step are recorded and judged; some of the others are taken again."""

import json
from dataclasses import replace

import pytest
import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject import training
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import data
from nsa_lib.worker.attestation import Witness
from nsa_lib.worker.attestation.replay import Span, span_of
from tests.subject.test_config import CASE
from tests.worker.attestation.attested import CHUNK, LENGTH, LR, config


def witnessed(*, work="train", steps=5, spoilt_step=None, spoil=None, seed=0, drawn=lambda tokens: tokens):
    """Run a case's loop with a witness; return what it found, and what of the steps that it took again."""
    case = CaseConfig(
        case_id="training", work=work, model=config(), seq_len=LENGTH, batch=1, steps=steps, dtype="float32",
        grad_checkpointing=True, lr=LR, seed=seed, device="cpu", loss_chunk=CHUNK, attest=True,
    )  # fmt: skip
    torch.manual_seed(case.seed)
    model, batches, witness = TinyLM(case.model, grad_checkpointing=True), data.batches(case), Witness(case, dict)
    optimizer = training.make_optimizer(model, case.lr) if work == "train" else None

    def take(tokens):
        if optimizer is None:
            return training.backward_step(model, tokens, loss_chunk=CHUNK)
        return training.train_step(model, optimizer, tokens, loss_chunk=CHUNK)

    if spoil is not None:
        spoil(model)
    for step in range(1, steps + 1):
        tokens = drawn(next(batches))
        with witness.watching(step, model, tokens, optimizer):
            result = take(tokens.roll(1, dims=1) if step == spoilt_step else tokens)
        witness.returned(step, result.loss.item(), result.grad_norm.item(), model, optimizer)
    return witness.judge("cpu"), witness.replay(model, optimizer, take, "cpu"), witness.steps


@pytest.mark.parametrize("work", ["train", "backward"])
def test_first_last_and_one_other_step_are_judged(work):
    found, replay, steps = witnessed(work=work)
    assert [one["step"] for one in found] == list(steps)
    assert (steps[0], len(steps), steps[-1]) == (1, 3, 5)
    assert not any(area for one in found for area in one["wrong"].values())
    assert [len(one["layers"]) for one in found] == [2, 0, 2]
    assert found[1]["compared"].startswith("the train step alone")
    assert [one["update"] is None for one in found] == [work == "backward"] * 3
    assert (replay["steps"], replay["wrong"]) == ([2, 3, 4], {})
    assert not any(replay["judged"]["wrong"].values())
    assert len(replay["judged"]["layers"]) == 1
    json.dumps([found, replay], allow_nan=False)


@pytest.mark.parametrize("fault", ["not made", "another rate", "state begun anew"])
def test_an_update_that_is_wrong_in_one_unrecorded_step_is_found(monkeypatch, fault):
    steps, honest = 18, torch.optim.AdamW.step
    spared = Witness(replace(CASE, steps=steps, seed=0), dict)
    at = next(step for step in range(2, steps) if step not in {*spared.steps, *span_of(steps, 0)})

    def step(optimizer):
        if next(iter(optimizer.state.values()), {}).get("step", 0) != at - 1:
            return honest(optimizer)
        states = list(optimizer.state.values())
        if fault == "not made":
            return [state["step"].add_(1) for state in states]
        if fault == "state begun anew":
            [state["exp_avg"].zero_() for state in states]
            return honest(optimizer)
        for group in optimizer.param_groups:
            group["lr"] *= 1.5
        honest(optimizer)
        for group in optimizer.param_groups:
            group["lr"] /= 1.5

    monkeypatch.setattr(training, "make_optimizer", lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr))
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    found, replay, _ = witnessed(steps=steps)
    assert not any(area for one in found for area in one["wrong"].values())
    assert [name.partition(",")[0] for name in replay["wrong"]] == [f"step {at}"]
    assert replay["followed"] == steps


def test_weights_that_are_not_those_a_training_begins_with_are_found():
    def spoil(model):
        with torch.no_grad():
            model.head.weight.mul_(1.1)
            model.blocks[0].mlp[2].weight.zero_()
            model.blocks[1].norm_mlp.weight[3] = 1.01

    (first, *later), _, _ = witnessed(spoil=spoil)
    wrong = {"first head.weight", "first blocks.0.mlp.2.weight", "first blocks.1.norm_mlp.weight"}
    assert wrong <= set(first["wrong"]["train_step"])
    assert not any("first" in name for one in later for name in one["wrong"]["train_step"])


def test_another_seed_than_was_asked_for_is_found(monkeypatch):
    seed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda _: seed(7))
    assert witnessed()[0][0]["wrong"]["train_step"] == {"seed": "the model was made with 7, asked for is 0"}


def test_another_seed_records_another_step():
    others = {Witness(replace(CASE, steps=60, seed=seed), dict).steps[1] for seed in range(20)}
    assert len(others) > 10
    assert others <= set(range(2, 60))


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_are_all_judged(steps):
    found, replay, _ = witnessed(steps=steps)
    assert [one["step"] for one in found] == list(range(1, steps + 1))
    assert all(one["layers"] for one in found)
    assert (replay["steps"], replay["wrong"], replay["judged"]) == ([], {}, None)


@pytest.mark.parametrize("step", [1, 5])
def test_a_step_on_other_tokens_is_found_where_it_happened(step):
    found, _, _ = witnessed(spoilt_step=step)
    wrong = {one["step"] for one in found if any(one["wrong"].values())}
    assert wrong == {step}


def test_a_loop_that_trains_on_other_tokens_than_asked_for_is_found():
    found, replay, _ = witnessed(drawn=lambda tokens: tokens % 2)
    said = {one["wrong"]["train_step"]["tokens"] for one in (*found, replay["judged"])}
    assert len(said) == 1
    assert said.pop().endswith("are not those asked for")
    assert not any(one["wrong"]["attention"] for one in found), "all that follows agrees"


# What is right only where it is looked at


def test_a_step_that_nobody_recorded_is_found_when_it_is_taken_again():
    (spoilt,) = {2, 3, 4} - {witnessed()[2][1], 4}  # one that is not recorded, nor the last of those taken again
    found, replay, _ = witnessed(spoilt_step=spoilt)
    assert not any(area for one in found for area in one["wrong"].values())
    assert f"step {spoilt}" in replay["wrong"]


def test_a_layer_that_is_right_only_while_it_is_observed_is_found():
    def spoil(model):
        attention = model.blocks[1].attention
        honest = attention.project

        def project(x):
            parts = honest(x)
            return parts if attention.observe is not None else {**parts, "value_win": 0.5 * parts["value_win"]}

        attention.project = project

    found, replay, _ = witnessed(spoil=spoil)
    assert not any(area for one in found for area in one["wrong"].values())
    assert replay["wrong"]


def test_code_that_counts_steps_and_knows_the_first_and_the_last_is_found():
    def spoil(model):
        honest, calls = model.embedding.forward, [0]

        def embed(tokens):
            calls[0] += 1
            return honest(tokens if calls[0] in (1, 5) else tokens.roll(1, dims=1))

        model.embedding.forward = embed

    found, replay, _ = witnessed(spoil=spoil)
    wrong = {one["step"] for one in found if any(one["wrong"].values())}
    assert wrong.isdisjoint({1, 5})
    assert any(replay["judged"]["wrong"].values())


@pytest.mark.parametrize(
    ("now", "tolerance", "wrong"),
    [
        ((3.0, 1.0), 0.0, False),
        ((3.0 + 1e-9, 1.0), 0.0, True),
        ((3.0, 1.0 + 1e-9), 0.0, True),
        ((3.05, 1.09), 0.02, False),
        ((3.07, 1.0), 0.02, True),
        ((3.0, 1.11), 0.02, True),
        ((float("nan"), 1.0), 0.02, True),
    ],
)
def test_a_step_taken_again_must_agree_to_the_bit_or_within_what_is_said(now, tolerance, wrong):
    span = Span(range(2, 3), results=[(3.0, 1.0)])
    assert bool(span._differences([now], tolerance)) == wrong


@pytest.mark.parametrize(
    ("place", "norm", "wrong"), [(4, 1.11, True), (4, 1.09, False), (9, 1.55, False), (9, 1.65, True)]
)
def test_norms_of_steps_taken_again_may_leap_late_in_a_span(place, norm, wrong):
    steps = [(3.0, 1.0)] * 10
    span = Span(range(20, 30), results=steps)
    assert bool(span._differences([*steps[:place], (3.0, norm), *steps[place + 1 :]], 0.02)) == wrong
    assert not span._differences(steps, 0.0)
