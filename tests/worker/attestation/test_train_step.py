"""A train step that is wrong in its loss, its gradients or its update is found by the name of what is wrong."""

import json

import pytest
import torch

from nsa_lib.subject import training
from nsa_lib.worker import attestation
from tests.worker.attestation.attested import CHUNK, LENGTH, LR, config, judged, recorded_step, trainee, wrong

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def names(kind, layers=(1, 2)):
    return {f"layer {layer} {kind}" for layer in layers}


def test_half_of_the_tokens_in_the_loss_is_found(monkeypatch):
    honest = training.chunked_cross_entropy

    def half(hidden, head, labels, chunk):
        return honest(hidden[:, ::2], head, labels[:, ::2], chunk)

    monkeypatch.setattr(training, "chunked_cross_entropy", half)
    found = judged(config())
    assert {"positions", "loss", "d_hidden"} <= wrong(found)
    assert (found.loss.counted, found.loss.positions) == (LENGTH // 2, LENGTH)


@pytest.mark.parametrize("cut", [lambda tokens: tokens[:, :200], lambda tokens: tokens[:1]], ids=["shorter", "fewer"])
def test_a_step_on_part_of_the_tokens_is_found(cut):
    def step(model, optimizer, tokens, **more):
        return training.train_step(model, optimizer, cut(tokens), **more)

    found = judged(config(), step=step, batch=2)
    assert names("input") | {"positions", "loss"} == wrong(found)
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_a_scaled_loss_gradient_is_found(monkeypatch, dtype):
    honest = training.chunked_cross_entropy
    monkeypatch.setattr(training, "chunked_cross_entropy", lambda *a: SpoiltScale.apply(honest(*a)))
    assert wrong(judged(config(), dtype=dtype)) == {"d_hidden", "d_head"}


class SpoiltScale(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.1 * gradient


def test_labels_that_are_not_shifted_are_found(monkeypatch):
    honest = training.chunked_cross_entropy
    spoilt = lambda hidden, head, labels, chunk: honest(hidden, head, labels.roll(1, dims=1), chunk)  # noqa: E731
    monkeypatch.setattr(training, "chunked_cross_entropy", spoilt)
    assert {"loss", "d_hidden", "d_head"} <= wrong(judged(config()))


def updates_of(layer, found):
    return {name for name in wrong(found) if name.startswith(f"update blocks.{layer}.")}


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_a_layer_that_is_never_updated_is_found(dtype):
    def step(model, optimizer, tokens, **more):
        group = optimizer.param_groups[0]
        group["params"] = [p for name, p in model.named_parameters() if not name.startswith("blocks.1.")]
        return training.train_step(model, optimizer, tokens, **more)

    found = judged(config(), step=step, dtype=dtype)
    assert len(updates_of(1, found)) == len([name for name in names_of(found) if name.startswith("blocks.1.")])
    assert not updates_of(0, found)


def names_of(found):
    return {n.removeprefix("update ") for n in wrong(found) if n.startswith("update ")}


def test_a_frozen_layer_is_found():
    def step(model, optimizer, tokens, **more):
        for block in model.blocks[1:]:
            block.mlp.requires_grad_(False)
        return training.train_step(model, optimizer, tokens, **more)

    found = judged(config(), step=step)
    assert {"gradient blocks.1.mlp.0.weight", "gradient blocks.1.mlp.2.weight"} <= wrong(found)


@pytest.mark.parametrize(("dtype", "factor"), [(FLOAT32, 1.01), (BFLOAT16, 1.5), (BFLOAT16, 0.5), (BFLOAT16, 0.0)])
def test_another_learning_rate_is_found(dtype, factor):
    def step(model, optimizer, tokens, **more):
        optimizer.param_groups[0]["lr"] = factor * LR
        return training.train_step(model, optimizer, tokens, **more)

    found = judged(config(), step=step, dtype=dtype, steps=3)
    assert {"update blocks.0.attention.query.weight", "update head.weight", "update embedding.weight"} <= wrong(found)


def test_a_learning_rate_of_zero_in_one_layer_is_found():
    def step(model, optimizer, tokens, **more):
        if len(optimizer.param_groups) == 1:
            slow = list(model.blocks[1].parameters())
            group = optimizer.param_groups[0]
            group["params"] = [p for p in group["params"] if not any(p is other for other in slow)]
            optimizer.add_param_group({"params": slow, "lr": 0.0})
        return training.train_step(model, optimizer, tokens, **more)

    found = judged(config(), step=step, dtype=BFLOAT16)
    assert "update blocks.1.attention.query.weight" in wrong(found)
    assert not updates_of(0, found)


def test_an_update_scaled_after_the_optimizer_is_found():
    def step(model, optimizer, tokens, **more):
        result = training.train_step(model, optimizer, tokens, **more)
        with torch.no_grad():
            model.blocks[0].mlp[0].weight.mul_(1.001)
        return result

    assert wrong(judged(config(), step=step)) == {"update blocks.0.mlp.0.weight"}


def test_another_weight_decay_is_found_in_float32():
    def step(model, optimizer, tokens, **more):
        optimizer.param_groups[0]["weight_decay"] = 0.0
        return training.train_step(model, optimizer, tokens, **more)

    found = judged(config(), step=step)
    assert len(found.update.wrong) == found.gradients.parameters
    assert min(found.update.wrong.values()) > 5


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("factor", [1.03, 0.97])
def test_a_learning_rate_that_is_off_by_a_little_leans_in_all_entries_together(dtype, factor):
    def step(model, optimizer, tokens, **more):
        optimizer.param_groups[0]["lr"] = factor * LR
        return training.train_step(model, optimizer, tokens, **more)

    found = judged(config(), step=step, dtype=dtype, steps=3)
    assert {"update blocks.0.mlp.0.weight", "update head.weight", "update embedding.weight"} <= wrong(found)


@pytest.mark.parametrize("first", range(3, 43, 8))
def test_two_rows_that_are_not_updated_are_found_wherever_they_are(first):
    def step(model, optimizer, tokens, **more):
        weight = model.blocks[1].mlp[0].weight
        rows = weight.detach()[first : first + 2].clone()
        result = training.train_step(model, optimizer, tokens, **more)
        with torch.no_grad():
            weight[first : first + 2] = rows
        return result

    assert wrong(judged(config(), step=step)) == {"update blocks.1.mlp.0.weight"}


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, torch.float64])
def test_a_gradient_norm_that_is_not_that_of_the_gradients_is_found(dtype):
    record, loss = recorded_step(config(layers=1), dtype=dtype)
    norm = attestation.judge(record, loss, loss_chunk=CHUNK, rule=None).gradients.exact_norm
    for share, names_found in (
        (1.0, set()),
        (1 + 1e-3, {"gradient norm"} if dtype != BFLOAT16 else set()),
        (0.9, {"gradient norm"}),
    ):
        found = attestation.judge(record, loss, grad_norm=share * norm, loss_chunk=CHUNK, rule=None)
        assert wrong(found) == names_found


def test_gradients_that_are_clipped_are_found():
    def step(model, optimizer, tokens, **more):
        result = training.backward_step(model, tokens, **more)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1 * float(result.grad_norm))
        optimizer.step()
        return result

    found = judged(config(), step=step)
    assert {"layer 1 d_query.weight", "d_head"} <= wrong(found)
    assert not names_of(found)


def test_a_step_without_update_is_judged_too():
    model_config = config(layers=1)
    model, _ = trainee(model_config)
    tokens = torch.randint(64, (1, LENGTH + 1))
    sample = attestation.sample(model_config, batch=1, length=LENGTH, seed=0)
    with attestation.recording(model, tokens, sample) as record:
        loss = training.backward_step(model, tokens, loss_chunk=CHUNK).loss.item()
    found = attestation.judge(record, loss, loss_chunk=CHUNK, rule=None)
    assert wrong(found) == set()
    assert found.update is None
    assert "d_query.weight" in found.layers[0].gradients


def test_the_train_step_of_another_attention_is_judged_and_its_layers_are_not():
    found = judged(config(attention="dense"))
    assert wrong(found) == set()
    assert {part.part for part in found.not_compared} == {"layers"}
    assert found.update.moved > 0


def test_a_loss_that_is_not_finite_is_found():
    record, _ = recorded_step(config(layers=1))
    found = attestation.judge(record, float("nan"), loss_chunk=256, rule=None)
    assert wrong(found) == {"loss"}
    json.dumps(found.to_json(), allow_nan=False)
