"""What a step executes, as it is recorded from inside: every layer's backend and passes, dtypes, and what is off."""

from dataclasses import replace

import pytest
import torch

from nsa_lib.subject import training
from nsa_lib.subject.attention import BACKENDS
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.attestation.execution import executing
from tests.subject.test_config import MODEL

LAYERS = 3


def executed(*, backend="masked", grad_checkpointing=True, spoil=lambda model: None, dtype=torch.float32):
    """Take one step of a small model and return what it executed."""
    model = TinyLM(replace(MODEL, layers=LAYERS, backend=backend), grad_checkpointing=grad_checkpointing).to(dtype)
    optimizer = training.make_optimizer(model, 1e-3)
    spoil(model)
    with executing(model, optimizer) as found:
        training.train_step(model, optimizer, torch.randint(MODEL.vocab, (1, 97)))
    return found


@pytest.mark.parametrize("backend", ["masked", "gather", "packed"])
def test_every_layer_names_its_backend_and_runs_twice_with_checkpointing(backend):
    found = executed(backend=backend)
    assert (found.routes, found.passes) == ([[backend]] * LAYERS, [2] * LAYERS)
    assert executed(backend=backend, grad_checkpointing=False).passes == [1] * LAYERS


def test_a_backend_that_calls_another_is_seen_in_the_step(monkeypatch):
    packed = BACKENDS["packed"]

    def pretender(q, *arguments, **keywords):
        return (BACKENDS["masked"] if q.shape[2] > 64 else packed)(q, *arguments, **keywords)

    monkeypatch.setitem(BACKENDS, "packed", pretender)
    assert executed(backend="packed").routes == [["masked"]] * LAYERS


def test_one_layer_with_another_backend_is_seen():
    def spoil(model):
        model.blocks[1].attention.backend = "gather"

    assert executed(spoil=spoil).routes == [["masked"], ["gather"], ["masked"]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes_and_device_are_those_of_the_tensors(dtype):
    found = executed(dtype=getattr(torch, dtype))
    kinds = ("activations", "parameters", "gradients", "optimizer")
    assert found.dtypes == {kind: [dtype] for kind in kinds}
    assert found.devices == ["cpu"]


def test_anomaly_detection_is_seen_where_it_is_in_force():
    assert not executed().detects_anomalies
    with torch.autograd.set_detect_anomaly(True):
        assert executed().detects_anomalies


def test_nothing_is_left_behind():
    model = TinyLM(MODEL)
    with executing(model, None):
        pass
    attention = model.blocks[0].attention
    assert not attention._forward_hooks
    assert not attention._forward_pre_hooks
    assert not model.norm._forward_hooks
