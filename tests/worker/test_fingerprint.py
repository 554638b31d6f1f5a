"""A fingerprint changes with any bit of what a training computes, and recording it changes none."""

import json
from dataclasses import replace

import pytest
import torch

from nsa_lib.contract.fingerprint import FILE, fingerprint_steps, first_difference, made_of
from nsa_lib.subject import training
from nsa_lib.subject.attention.module import NSAttention
from nsa_lib.worker.building import built
from nsa_lib.worker.data import batches
from nsa_lib.worker.fingerprint import FingerprintRecorder
from tests.subject.test_config import CASE

RECORDED = replace(CASE, steps=5, fingerprint=True)


def trained(case=RECORDED, disturb=lambda step, model: None):
    """Train in this process, and return fingerprint and parameters."""
    model = built(case)
    optimizer, prints, tokens = training.make_optimizer(model, case.lr), FingerprintRecorder(model, case), batches(case)
    for step in range(1, case.steps + 1):
        with prints.watching(step):
            result = training.train_step(model, optimizer, next(tokens))
        disturb(step, model)
        prints.after(step, result.loss.item())
    return prints.found, [p.detach().clone() for p in model.parameters()]


def test_two_trainings_have_one_fingerprint():
    assert first_difference(trained()[0], trained()[0]) == ""


def test_recording_changes_no_bit():
    _, recorded = trained()
    found, plain = trained(replace(RECORDED, fingerprint=False))
    assert found == {"losses": [], "steps": {}}
    assert all(map(torch.equal, recorded, plain))


def test_every_step_has_its_loss_and_some_have_layers_and_parameters():
    found, _ = trained()
    assert len(set(found["losses"])) == 5
    assert [int(step) for step in found["steps"]] == list(fingerprint_steps(5)) == [1, 2, 3, 5]
    for step in found["steps"].values():
        assert set(step) == {"layers", "parameters"}
        assert all(set(layer) == {"output", "choice", "gradients"} for layer in step["layers"].values())


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 60, 100])
def test_first_middle_last_and_repeated_steps_are_recorded(steps):
    found = fingerprint_steps(steps)
    assert {1, (1 + steps) // 2, steps} | set(range(1, min(3, steps) + 1)) == set(found)


def lowest_bit(x):
    x.view(-1)[:1].view(torch.int32).bitwise_xor_(1)


@pytest.mark.parametrize(
    ("where", "disturb"),
    [
        ("step 2, layer 1: gradients", lambda model: lowest_bit(model.attention_layers[0].out.weight.grad)),
        ("step 2, parameters after it", lambda model: lowest_bit(model.embedding.weight.detach())),
    ],
)
def test_the_lowest_bit_is_seen_where_it_was_flipped(where, disturb):
    changed, _ = trained(disturb=lambda step, model: disturb(model) if step == 2 else None)
    assert first_difference(trained()[0], changed) == where


def test_an_output_that_differs_is_named_before_what_follows_from_it(monkeypatch):
    honest, original = trained()[0], NSAttention.forward
    monkeypatch.setattr(NSAttention, "forward", lambda layer, x: original(layer, x) * (1 + 2**-22))
    assert first_difference(honest, trained()[0]) == "step 1, layer 1: output"


def test_a_layer_that_is_observed_already_is_observed_on():
    model, seen = built(RECORDED), []
    attention = model.attention_layers[0]
    attention.observe = lambda name, value, **beside: seen.append(name) or value
    before = attention.observe
    with FingerprintRecorder(model, RECORDED).watching(1):
        model.hidden(next(batches(RECORDED))[:, :-1])
    assert seen == ["mixed"]
    assert attention.observe is before


ORIGIN = {"gpu": None, "processor": "a core", "torch": "2.13.0", "package_sha256": "a" * 64, "data_sha256": "b" * 64}


def test_what_bits_do_not_depend_on_is_no_part_of_what_a_fingerprint_is_of():
    longer = replace(RECORDED, case_id="other", steps=50, fault="bit_once", attest=True, alloc_conf="")
    assert made_of(longer, ORIGIN) == made_of(RECORDED, ORIGIN)
    json.dumps(made_of(RECORDED, ORIGIN))
    for changed in (replace(RECORDED, seed=1), replace(RECORDED, lr=1e-5), replace(RECORDED, seq_len=128)):
        assert made_of(changed, ORIGIN) != made_of(RECORDED, ORIGIN)
    assert made_of(RECORDED, {**ORIGIN, "gpu": "NVIDIA H200"})["device_kind"] == "NVIDIA H200"


def test_the_name_of_the_file_is_known_to_both_sides():
    assert FILE == "fingerprint.json"
