"""Compiled layers are recorded as they run in every step: what they show, passes and routes, and what is wrong."""

from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.utils import counters

from nsa_lib.subject import training
from nsa_lib.subject.attention import BACKENDS, module
from nsa_lib.worker import attestation
from nsa_lib.worker.attestation.execution import executing
from nsa_lib.worker.attestation.shown import _listeners, show_always
from tests.worker.attestation.attested import CHUNK, LENGTH, LR, config, trainee

LAYERS = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:Profiler record function"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings(
        "ignore:.*should not be instantiated:DeprecationWarning"
    ),  # Dynamo does, of any Function
]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled_step(*, backend="masked", grad_checkpointing=True, steps=2):
    """The last of some compiled steps: what it executed, what is found of it, and the parameters after it."""
    of = config(backend=backend, layers=LAYERS)
    model, optimizer = trainee(of, grad_checkpointing=grad_checkpointing)
    show_always(model)
    with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):  # Inductor would take a minute
        model.compile_blocks()
    tokens = torch.randint(64, (1, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    one = attestation.sample(of, batch=1, length=LENGTH, seed=0)
    for _ in range(steps - 1):
        training.train_step(model, optimizer, tokens, loss_chunk=CHUNK)
    with executing(model, optimizer) as executed, attestation.recording(model, tokens, one, optimizer) as record:
        loss = training.train_step(model, optimizer, tokens, loss_chunk=CHUNK).loss.item()
    assert not _listeners
    found = attestation.judge(record, loss, loss_chunk=CHUNK, rule=attestation.AdamW(lr=LR))
    return executed, found, [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("backend", ["masked", "packed"])
def test_a_compiled_step_is_judged_whole(backend):
    executed, found, _ = compiled_step(backend=backend)
    assert not any(found.wrong().values())
    assert not found.not_compared
    assert [layer.passes for layer in found.layers] == [2] * LAYERS
    assert {"cmp", "slc", "win", "branch_gates", "output"} <= set(found.layers[1].parts)
    assert {"d_x", "d_query.weight"} <= set(found.layers[1].gradients)
    assert found.layers[1].choice is not None
    assert (executed.routes, executed.passes, executed.eager_layers) == ([[backend]] * LAYERS, [2] * LAYERS, [])
    assert "recomputed" in found.layers[0].parts
    # All layers show, so all run the same code: one for forward, which keeps nothing, and one that is computed again.
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_without_checkpointing_a_compiled_layer_runs_once():
    executed, found, _ = compiled_step(grad_checkpointing=False)
    assert executed.passes == [1] * LAYERS
    assert not any(found.wrong().values())


def test_a_wrong_window_in_compiled_code_is_found(monkeypatch):
    honest = module.sliding_attention
    monkeypatch.setattr(module, "sliding_attention", lambda q, k, v, w: honest(q, k, v, w=w // 2))
    _, found, _ = compiled_step()
    assert {f"layer {i + 1} win" for i in range(LAYERS)} <= set(found.wrong()["attention"])


def test_a_recomputation_that_differs_is_found(monkeypatch):
    honest = module.sliding_attention
    monkeypatch.setattr(
        module, "sliding_attention", lambda q, k, v, w: honest(q, k, v, w=w // 2 if torch.is_grad_enabled() else w)
    )
    _, found, _ = compiled_step()
    wrong = set(found.wrong()["attention"])
    assert {f"layer {i + 1} recomputed" for i in range(LAYERS)} <= wrong
    assert not {f"layer {i + 1} output" for i in range(LAYERS)} & wrong


def test_a_layer_that_runs_as_python_says_so():
    of = config(layers=2)
    model, optimizer = trainee(of)
    show_always(model)
    model.is_compiled = True  # as `compile_blocks` says, but nothing is
    with executing(model, optimizer) as executed:
        training.train_step(model, optimizer, torch.randint(64, (1, 65)), loss_chunk=CHUNK)
    assert executed.eager_layers == [0, 1]


def test_another_backend_in_compiled_code_is_seen(monkeypatch):
    monkeypatch.setitem(BACKENDS, "packed", BACKENDS["masked"])
    executed, _, _ = compiled_step(backend="packed", steps=1)
    assert executed.routes == [["masked"]] * LAYERS
