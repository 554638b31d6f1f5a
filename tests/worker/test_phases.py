"""A step that says that its phases end out of turn, or at another place than they do, is stopped."""

import pytest
import torch

from nsa_lib.subject import training
from nsa_lib.subject.config import ModelConfig, NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.phases import in_order

TOKENS = torch.randint(32, (1, 65))


@pytest.fixture
def model():
    nsa = NSAConfig(dim=32, heads=2, groups=2, d_k=16, d_v=16, l=16, d=16, l_sel=16, n_sel=3, w=16)
    return TinyLM(ModelConfig(nsa=nsa, layers=1, vocab=32))


def test_an_honest_step_marks_its_phases_step_after_step(model):
    optimizer, marks = training.make_optimizer(model, 1e-3), []
    for _ in range(2):
        training.train_step(model, optimizer, TOKENS, mark=in_order(model, marks.append))
    assert marks == 2 * list(training.PHASES)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (("backward",), "ended backward, where forward must end"),
        (("forward", "forward"), "ended forward, where backward must end"),
        (("forward", "backward", "optimizer", "optimizer"), "ended optimizer, where no other phase must end"),
    ],
)
def test_phases_out_of_turn_are_refused(model, order, said):
    mark, (*before, last) = in_order(model, lambda phase: None), order
    for phase in before:
        mark(phase)
        model.norm.weight.grad = torch.ones(32)
    with pytest.raises(RuntimeError, match=said):
        mark(last)


def test_a_forward_that_ends_after_backward_is_refused(model):
    mark = in_order(model, lambda phase: None)
    training.backward_step(model, TOKENS)
    with pytest.raises(RuntimeError, match="ended forward after its gradients were made"):
        mark("forward")


def test_a_backward_without_gradients_is_refused(model):
    mark = in_order(model, lambda phase: None)
    mark("forward")
    with pytest.raises(RuntimeError, match="ended backward before its gradients were made"):
        mark("backward")
