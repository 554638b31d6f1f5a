"""The train step, against PyTorch's own loss and norms."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from nsa_lib.subject import training
from nsa_lib.subject.config import LOSS_CHUNK
from nsa_lib.subject.model import TinyLM
from nsa_lib.subject.training import (
    chunked_cross_entropy,
    first_non_finite,
    grad_norm,
    make_optimizer,
    state_bytes,
    train_step,
)
from tests.subject.test_model import MODEL


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("tokens", [1, 511, 512, 513, 1300])
def test_the_loss_in_chunks_is_the_cross_entropy_and_so_are_its_gradients(dtype, tolerance, tokens):
    hidden, head = torch.randn(1, tokens, 16, dtype=dtype), torch.randn(33, 16, dtype=dtype)
    labels = torch.randint(33, (1, tokens))
    results = []
    for loss_of, wide in (
        (chunked_cross_entropy, dtype),
        (lambda h, w, y: F.cross_entropy((h @ w.T).flatten(0, 1), y.flatten()), torch.float64),
    ):
        h, w = (x.to(wide).detach().requires_grad_() for x in (hidden, head))
        loss = loss_of(h, w, labels)
        (3 * loss).backward()
        results.append([x.double() for x in (loss.detach(), h.grad, w.grad)])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()


def test_large_logits_give_no_nan():
    hidden, head = torch.full((1, 5, 4), 50.0, requires_grad=True), torch.full((7, 4), 50.0, requires_grad=True)
    loss = chunked_cross_entropy(hidden, head, torch.zeros(1, 5, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(7), abs=1e-3)  # float32 keeps three decimals of a logit of 10,000
    assert hidden.grad.isfinite().all()


def test_the_logits_of_the_whole_sequence_never_exist():
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    hidden, head = torch.randn(1, 2048, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
    with Largest():
        chunked_cross_entropy(hidden, head, torch.randint(1000, (1, 2048))).backward()
    assert largest == LOSS_CHUNK * 1000


def step_of(model, tokens, **more):
    return train_step(model, make_optimizer(model, 1e-2), tokens, **more)


def test_each_position_predicts_the_token_after_it():
    model, tokens = TinyLM(MODEL), torch.randint(64, (2, 65))
    expected = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert step_of(model, tokens).loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_norm_is_that_of_all_gradients_before_the_update():
    model = TinyLM(MODEL)
    norm = step_of(model, torch.randint(64, (1, 65))).grad_norm.item()
    squares = sum(p.grad.double().square().sum() for p in model.parameters())
    assert norm == pytest.approx(squares.sqrt().item(), rel=1e-5)
    assert norm > 0


def test_the_update_is_adamws():
    model, tokens = TinyLM(MODEL), torch.randint(64, (1, 65))
    twin = TinyLM(MODEL)
    twin.load_state_dict(model.state_dict())
    step_of(model, tokens)
    F.cross_entropy(twin(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    torch.optim.AdamW(twin.parameters(), lr=1e-2, fused=False).step()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        # The first update of Adam is near lr * sign(gradient): where a gradient is rounding noise, so is its sign.
        clear = theirs.grad.abs() > 1e-6
        torch.testing.assert_close(ours[clear], theirs[clear], rtol=1e-3, atol=1e-5, msg=name)


def test_the_phases_are_marked_in_order():
    seen = []
    step_of(TinyLM(MODEL), torch.randint(64, (1, 33)), mark=seen.append)
    assert tuple(seen) == training.PHASES


def test_a_parameter_without_a_gradient_is_named():
    model = TinyLM(MODEL)
    model.head.weight.grad = torch.zeros_like(model.head.weight)
    with pytest.raises(RuntimeError, match=r"no gradient reached embedding\.weight"):
        grad_norm(model)


def test_the_first_gradient_that_is_not_finite_is_named():
    model = TinyLM(MODEL)
    step_of(model, torch.randint(64, (1, 33)))
    assert first_non_finite(model) is None
    model.norm.weight.grad[3] = torch.inf
    model.head.weight.grad[0, 0] = torch.nan
    assert first_non_finite(model) == "norm.weight"


def test_the_state_is_parameters_gradients_and_two_moments():
    model = TinyLM(MODEL)
    optimizer = make_optimizer(model, 1e-3)
    train_step(model, optimizer, torch.randint(64, (1, 33)))
    parameters = list(model.parameters())
    counters = 4 * len(parameters)  # Adam's step, a float32 each
    assert state_bytes(model, optimizer) == 4 * 4 * sum(p.numel() for p in parameters) + counters


def test_a_repeated_batch_is_learned_and_fresh_noise_is_not():
    model, generator = TinyLM(MODEL), torch.Generator().manual_seed(1)
    optimizer, batch = make_optimizer(model, 3e-3), torch.randint(64, (1, 65))
    losses = [train_step(model, optimizer, batch).loss.item() for _ in range(30)]
    assert losses[-1] < losses[0] - 1
    model = TinyLM(MODEL)
    optimizer = make_optimizer(model, 1e-3)
    fresh = [
        train_step(model, optimizer, torch.randint(64, (8, 65), generator=generator)).loss.item() for _ in range(30)
    ]
    assert min(fresh[10:]) > math.log(64) - 0.05, "labels that are not shifted would be learned"
