"""The compressed branch against the reference, and what each query may and must see."""

import copy
import math
from functools import cache, partial

import pytest
import torch

from nsa_lib.subject.attention import compress, compressed_attention, compressed_probabilities, reference
from nsa_lib.subject.attention.compression import CompressionMLP, mean
from tests import budget

DTYPES = (torch.float64, torch.float32, torch.bfloat16)

BLOCKS = [(16, 16), (32, 16), (8, 4)]

# Covers each length, block shape and number of groups among four heads; short of a block, at its end, several long.
CASES = [
    (1, 16, 16, 2),
    (15, 32, 16, 4),
    (63, 16, 16, 1),
    (64, 32, 16, 4),
    (65, 16, 16, 2),
    (200, 32, 16, 1),
    (200, 8, 4, 2),
]


def sample(length, groups, *, l, d):
    """Queries, compressed keys and values, and a weight for the gradient."""
    compressed = max(0, (length - l) // d + 1)
    shapes = ((1, 4, length, 16), (1, groups, compressed, 16), (1, groups, compressed, 24), (1, 4, length, 24))
    return [budget.sample(*shape) for shape in shapes]


@cache
def case(length, l, d, groups, largest_logit=None):
    """Inputs, weight, scale, and the reference's output and gradients."""
    *inputs, weight = sample(length, groups, l=l, d=d)
    q, k, _ = inputs
    scale = largest_logit and largest_logit / float((q.unflatten(1, (groups, -1)) @ k[:, :, None].mT).abs().max())
    judge = partial(reference.compressed_attention, l=l, d=d, scale=scale)
    return inputs, weight, scale, budget.with_gradients(judge, inputs, weight)


def assert_equals_the_reference(dtype, length, l, d, groups, largest_logit=None):
    inputs, weight, scale, exact = case(length, l, d, groups, largest_logit)
    inputs = [x.to(dtype) for x in inputs]
    got = budget.with_gradients(partial(compressed_attention, l=l, d=d, scale=scale), inputs, weight)
    budget.assert_attention(got, exact, inputs, weight, keys=max(1, inputs[1].shape[2]), scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("phi", ["mlp", "mean"])
@pytest.mark.parametrize(("length", "l", "d"), [case[:3] for case in CASES])
def test_compress_and_its_gradients_equal_the_reference(length, l, d, phi, dtype):
    x = torch.randn(2, 3, length, 16, dtype=torch.float64).to(dtype).requires_grad_()
    chosen = CompressionMLP(l, 16).to(dtype) if phi == "mlp" else mean
    exact_phi = copy.deepcopy(chosen).double() if phi == "mlp" else lambda block: block.mean(-2)
    out, exact = compress(x, chosen, l=l, d=d), reference.compress(x, exact_phi, l=l, d=d)
    assert out.dtype == dtype
    allowed = budget.compression(dtype, l=l, width=16)
    assert budget.error(out, exact) <= allowed
    if out.numel() == 0:
        return
    weight = torch.randn_like(out)
    parameters = [[*p.parameters()] if phi == "mlp" else [] for p in (chosen, exact_phi)]
    got = torch.autograd.grad(out, [x, *parameters[0]], weight)
    true = torch.autograd.grad(exact, [x, *parameters[1]], weight.double())
    # The forward's errors again, its steps back with SiLU's slope, and the sum over the blocks that hold a token.
    back = budget.steps(dtype, roundings=budget.COMPRESSION_ROUNDINGS + 1 + l // d, terms=6 * out.shape[2])
    for mine, other in zip(got, true, strict=True):
        assert budget.error(mine, other) <= math.hypot(allowed, back)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "l", "d", "groups"), CASES)
def test_attention_and_its_gradients_equal_the_reference(dtype, length, l, d, groups):
    assert_equals_the_reference(dtype, length, l, d, groups)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_a_hundred(dtype):
    assert_equals_the_reference(dtype, 100, 8, 4, 2, largest_logit=100)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("l", "d"), BLOCKS)
def test_probabilities_equal_the_reference_and_are_float32_or_better(l, d, dtype):
    q, k, _, _ = (x.to(dtype) for x in sample(100, 2, l=l, d=d))
    p, exact = (f(q, k, l=l, d=d) for f in (compressed_probabilities, reference.compressed_probabilities))
    assert p.dtype == torch.promote_types(dtype, torch.float32)
    exact_inputs = [x.to(p.dtype) for x in (q, k)]
    assert budget.error(p, exact) <= budget.attention(*exact_inputs, keys=k.shape[2]).output
    assert torch.equal(p == 0, exact == 0), "exactly the blocks that have not ended are 0"


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_see_no_block_are_zero_with_zero_gradients(dtype):
    q, k, v, weight = (x.to(dtype) for x in sample(60, 2, l=32, d=16))
    weight[:, :, 31:] = 0
    out, dq, dk, dv = budget.with_gradients(
        lambda q, k, v: compressed_attention(q, k, v, l=32, d=16), [q, k, v], weight
    )
    assert not out[:, :, :31].any()
    assert out[:, :, 31:].any(-1).all()
    for gradient in (dq, dk, dv):
        assert not gradient.any()


@pytest.mark.parametrize(("l", "d"), BLOCKS)
@pytest.mark.parametrize("phi", ["mlp", "mean"])
def test_each_value_reaches_every_row_from_the_end_of_its_first_whole_block(l, d, phi):
    length = 130
    phi = CompressionMLP(l, 24).double() if phi == "mlp" else mean
    q, k, _, _ = sample(length, 2, l=l, d=d)
    v = budget.sample(1, 2, length, 24)
    before = compressed_attention(q, k, compress(v, phi, l=l, d=d), l=l, d=d)
    for token in (0, l - 1, l, 50, 64, 97, 129):
        edited = v.clone()
        edited[:, :, token] += 1
        after = compressed_attention(q, k, compress(edited, phi, l=l, d=d), l=l, d=d)
        ends = [start + l - 1 for start in range(0, length - l + 1, d) if start <= token < start + l]
        expected = torch.arange(length) >= min(ends, default=length)
        changed = (after != before).any(-1)
        assert torch.equal(changed, expected.expand_as(changed)), f"token {token}"


def test_attention_mass_is_spread_over_the_blocks_that_have_ended():
    length, l, d = 60, 8, 4
    q, k, _, _ = sample(length, 2, l=l, d=d)
    compressed = k.shape[2]
    eye = torch.eye(compressed, dtype=q.dtype).expand(1, 2, -1, -1)
    mass = compressed_attention(torch.zeros_like(q), k, eye, l=l, d=d)
    seen = (torch.arange(compressed) * d + l - 1 <= torch.arange(length)[:, None]).double()
    torch.testing.assert_close(mass, (seen / seen.sum(-1, keepdim=True).clamp(min=1)).expand_as(mass))
