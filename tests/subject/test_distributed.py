"""The step of a batch in the shares of its ranks, one after another, against the step of the whole batch."""

import pytest
import torch

from nsa_lib.subject import distributed, training
from nsa_lib.subject.model import TinyLM
from tests.subject.test_model import MODEL


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_a_step_in_shares_is_that_of_the_whole_batch(micro_batches):
    torch.manual_seed(0)
    whole, shared = (TinyLM(MODEL).double() for _ in range(2))
    shared.load_state_dict(whole.state_dict())
    tokens, marks = torch.randint(MODEL.vocab, (4, 33)), []
    expected = training.train_step(whole, training.make_optimizer(whole, 1e-3), tokens)
    optimizer = training.make_optimizer(shared, 1e-3)
    found = distributed.accumulated_step(shared, optimizer, tokens, micro_batches=micro_batches, mark=marks.append)
    assert marks == list(training.PHASES)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-6, atol=0)  # norms are kept in float32
    for own, other in zip(shared.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
