"""RoPE against the complex plane's own rules, and against the reference."""

from functools import partial

import pytest
import torch

from nsa_lib.subject.attention import reference
from nsa_lib.subject.attention.rope import apply_rope
from tests import budget

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("stride", "offset"), [(1, 0), (16, 31)])
def test_equals_the_reference(dtype, stride, offset):
    x, weight = budget.sample(2, 3, 130, 6), budget.sample(2, 3, 130, 6)
    positions = torch.arange(130) * stride + offset
    rotate = partial(apply_rope, base=500.0, stride=stride, offset=offset)
    got = budget.with_gradients(rotate, [x.to(dtype)], weight)
    exact = budget.with_gradients(partial(reference.rope, positions=positions, base=500.0), [x], weight)
    assert got[0].dtype == dtype
    for mine, true in zip(got, exact, strict=True):
        assert budget.error(mine, true) <= budget.rotation(dtype, last_position=int(positions[-1]), width=6, base=500.0)


def test_product_of_query_and_key_depends_on_their_distance_only():
    q, k = torch.randn(2, 4, 1, 8, dtype=torch.float64), torch.randn(2, 4, 1, 8, dtype=torch.float64)

    def product(query_position, key_position):
        rotated = apply_rope(q, base=100.0, offset=query_position), apply_rope(k, base=100.0, offset=key_position)
        return (rotated[0] * rotated[1]).sum(-1)

    torch.testing.assert_close(product(7, 3), product(104, 100), rtol=1e-12, atol=1e-12)
    assert ((product(7, 3) - product(7, 4)).abs() > 1e-6).all()


def test_every_head_is_rotated_alike():
    x = torch.randn(1, 1, 20, 8).expand(1, 4, 20, 8)
    rotated = apply_rope(x, base=10000.0)
    assert torch.equal(rotated, rotated[:, :1].expand_as(rotated))


def test_the_first_position_stays_and_lengths_are_kept():
    x = torch.randn(1, 2, 20, 8, dtype=torch.float64)
    rotated = apply_rope(x, base=10000.0)
    assert torch.equal(rotated[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)


def test_no_rows_are_no_rows():
    assert apply_rope(torch.zeros(1, 2, 0, 8), base=10000.0, stride=16, offset=15).shape == (1, 2, 0, 8)
