"""Hashes see every bit; projections tell how far apart two models are, and in which part."""

import math

import pytest
import torch

from nsa_lib.worker import digest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_any_one_bit_that_differs_changes_the_hash(dtype):
    tensor = (100 * torch.rand(3, 5)).to(dtype)
    before, size = digest.hash_of([tensor]), tensor.element_size()
    flat = tensor.view(-1).view(torch.uint8)
    for byte in range(0, len(flat), size - 1 or 1):
        for bit in range(8):
            flat[byte] ^= 1 << bit
            assert digest.hash_of([tensor]) != before
            flat[byte] ^= 1 << bit
    assert digest.hash_of([tensor]) == before


def test_the_hash_depends_on_order_but_not_on_strides_or_chunks(monkeypatch):
    a, b = torch.randn(40, 30), torch.randn(40, 30)
    assert digest.hash_of([a, b]) != digest.hash_of([b, a])
    assert digest.hash_of([a]) != digest.hash_of([a.flip(0)])
    assert digest.hash_of([a.t().contiguous().t()]) == digest.hash_of([a])
    whole = digest.hash_of([a, b]), digest.parameters_digest([a, b], 3)
    monkeypatch.setitem(digest.CHUNKS, "cpu", 7)
    assert digest.hash_of([a, b]) == whole[0]
    found = digest.parameters_digest([a, b], 3)
    assert found["hash"] == whole[1]["hash"]
    for part, other in zip(found["parts"], whole[1]["parts"], strict=True):
        assert part["norm"] == pytest.approx(other["norm"])
        assert part["projections"] == pytest.approx(other["projections"])


def distance(a, b):
    squares = [(x - y) ** 2 for x, y in zip(a["projections"], b["projections"], strict=True)]
    return math.sqrt(sum(squares) / len(squares))


def test_projections_tell_the_distance_and_the_part_it_is_in():
    parameters = [torch.randn(8, 50), torch.randn(8)]
    before = digest.parameters_digest(parameters, 2)
    step = 1e-3 * torch.randn(4, 50)
    parameters[0][4:] += step
    after = digest.parameters_digest(parameters, 2)
    near, far = (distance(a, b) for a, b in zip(before["parts"], after["parts"], strict=True))
    assert near == 0
    assert 0.2 * step.norm() < far < 5 * step.norm()
    assert before["parts"][0]["norm"] == pytest.approx(math.hypot(parameters[0][:4].norm(), parameters[1][:4].norm()))


def test_norms_of_parts_make_the_norm_of_all():
    gradients = [torch.randn(6, 4), torch.randn(5)]
    norms = digest.part_norms(gradients, 2)
    assert norms[1] == pytest.approx(math.hypot(gradients[0][3:].norm(), gradients[1][3:].norm()))
    assert math.hypot(*norms) == pytest.approx(math.hypot(*(g.norm() for g in gradients)))


def signed(number):
    return (number + 2**63) % 2**64 - 2**63


def test_the_hash_is_that_of_whole_numbers_counted_one_by_one():
    tensor = torch.randint(-(2**62), 2**62, (40,))
    total = 0
    for place, value in enumerate(tensor.tolist()):
        mixed = signed(place * digest.MULTIPLIER + digest.INCREMENT)
        total += value * ((mixed ^ (mixed >> 29)) * 2 + 1)
    one = (total + digest.INCREMENT) % 2**64
    assert digest.hash_of([tensor]) == f"{one:016x}"
