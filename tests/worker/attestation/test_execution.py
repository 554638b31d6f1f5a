"""What a step executes, as it is recorded from inside: every layer's backend and passes, dtypes, and what is off."""

from dataclasses import replace

import pytest
import torch

from nsa_lib.subject import training
from nsa_lib.subject.attention import BACKENDS
from nsa_lib.subject.config import Own
from nsa_lib.subject.model import TinyLM
from nsa_lib.subject.own.model import OwnModel
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


OF_ANOTHER = """
from torch import nn
from torch.utils.checkpoint import checkpoint

class Layer(nn.Module):
    on = False
    def __init__(self, dim):
        super().__init__()
        self.project = nn.Linear(dim, dim)
    def forward(self, x):
        return checkpoint(self.inside, x, use_reentrant=False) if self.on else self.inside(x)
    def inside(self, x):
        return x + self.project(x.cumsum(1).tanh()).tanh()

class OutsideLayer(Layer):
    forward = Layer.inside

class Inside(nn.Module):
    layer = Layer
    def __init__(self, vocab, dim, layers):
        super().__init__()
        self.embedding, self.head = nn.Embedding(vocab, dim), nn.Linear(dim, vocab)
        self.layers = nn.ModuleList(self.layer(dim) for _ in range(layers))
    def gradient_checkpointing_enable(self):
        for layer in self.layers:
            layer.on = True
    def gradient_checkpointing_disable(self):
        pass
    def run(self, layer, x):
        return layer(x)
    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = self.run(layer, x)
        return self.head(x)

class Outside(Inside):
    layer = OutsideLayer
    def run(self, layer, x):
        return checkpoint(layer, x, use_reentrant=False) if layer.on else layer(x)

class Forgotten(Inside):
    layer = OutsideLayer
"""


@pytest.mark.parametrize(
    ("name", "on", "passes"),
    [("Inside", True, 2), ("Outside", True, 2), ("Inside", False, 1), ("Outside", False, 1), ("Forgotten", True, 1)],
)
def test_a_users_layers_that_checkpoint_inside_or_outside_of_their_call_run_twice(tmp_path, name, on, passes):
    (tmp_path / "of_another.py").write_text(OF_ANOTHER)
    own = Own(role="model", spec=f"{tmp_path}/of_another.py:{name}", sizes={"vocab": 20, "dim": 8, "layers": LAYERS})
    model = OwnModel(own, grad_checkpointing=on)
    optimizer = training.make_optimizer(model, 1e-3)
    with executing(model, optimizer) as found:
        training.train_step(model, optimizer, torch.randint(20, (1, 17)))
    assert found.passes == [passes] * LAYERS
