"""The sliding branch against the reference, and what each query may and must see."""

from functools import cache, partial

import pytest
import torch

from nsa_lib.subject.attention import reference, sliding_attention
from tests import budget

DTYPES = (torch.float64, torch.float32, torch.bfloat16)

# Covers each length, a window below, at and above it, each number of groups among four heads, a window of one token.
CASES = [(1, 1, 1), (15, 16, 2), (63, 48, 4), (64, 64, 1), (65, 64, 2), (200, 48, 2), (200, 1, 4), (130, 256, 1)]


def sample(length, groups):
    """Queries, keys, values, and a weight for the gradient."""
    shapes = ((1, 4, length, 16), (1, groups, length, 16), (1, groups, length, 24), (1, 4, length, 24))
    return [budget.sample(*shape) for shape in shapes]


@cache
def case(length, w, groups, largest_logit=None):
    """Inputs, weight, scale, and the reference's output and gradients."""
    *inputs, weight = sample(length, groups)
    q, k, _ = inputs
    scale = largest_logit and largest_logit / float((q.unflatten(1, (groups, -1)) @ k[:, :, None].mT).abs().max())
    judge = partial(reference.sliding_attention, w=w, scale=scale)
    return inputs, weight, scale, budget.with_gradients(judge, inputs, weight)


def assert_equals_the_reference(dtype, length, w, groups, largest_logit=None):
    inputs, weight, scale, exact = case(length, w, groups, largest_logit)
    inputs = [x.to(dtype) for x in inputs]
    got = budget.with_gradients(partial(sliding_attention, w=w, scale=scale), inputs, weight)
    budget.assert_attention(got, exact, inputs, weight, keys=min(w, length), scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "w", "groups"), CASES)
def test_output_and_gradients_equal_the_reference(dtype, length, w, groups):
    assert_equals_the_reference(dtype, length, w, groups)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_a_hundred(dtype):
    assert_equals_the_reference(dtype, 100, 30, 2, largest_logit=100)


def test_each_token_reaches_the_w_rows_from_its_own_and_no_other():
    q, k, v, _ = sample(150, 2)
    before = sliding_attention(q, k, v, w=48)
    for token in (0, 1, 47, 48, 95, 96, 149):
        edited = v.clone()
        edited[:, :, token] += 1
        changed = (sliding_attention(q, k, edited, w=48) != before).any(-1)
        expected = (torch.arange(150) >= token) & (torch.arange(150) < token + 48)
        assert torch.equal(changed, expected.expand_as(changed)), f"token {token}"


def test_keys_and_queries_of_the_future_have_no_influence():
    q, k, v, _ = (x.float() for x in sample(150, 2))
    before = sliding_attention(q, k, v, w=48)
    for token in (1, 48, 100):
        edited = [torch.cat([x[:, :, :token], torch.randn_like(x[:, :, token:])], dim=2) for x in (q, k, v)]
        assert torch.equal(sliding_attention(*edited, w=48)[:, :, :token], before[:, :, :token])


def test_attention_mass_is_spread_over_the_window():
    length, w = 40, 7
    mass = sliding_attention(
        torch.zeros(1, 2, length, 8), torch.randn(1, 1, length, 8), torch.eye(length).expand(1, 1, -1, -1), w=w
    )
    distance = torch.arange(length)[:, None] - torch.arange(length)
    seen = (distance >= 0) & (distance < w)
    torch.testing.assert_close(mass, (seen / seen.sum(-1, keepdim=True)).expand(1, 2, -1, -1))
