"""Scores and choice of blocks, judged exactly on identical scores; the attention to them is in test_backends."""

import math

import pytest
import torch

from nsa_lib.subject.attention import block_scores, compressed_probabilities, reference, select_blocks
from tests import budget

SHAPES = [(16, 16, 64), (32, 16, 64), (8, 4, 16)]

LENGTHS = [1, 15, 63, 64, 65, 200]


def probabilities(length, *, l, d, heads=4, dtype=torch.float64):
    return torch.rand(2, heads, length, max(0, (length - l) // d + 1), dtype=dtype)


def random_scores(length, *, l_sel, groups=2, dtype=torch.float64):
    return torch.rand(2, groups, length, math.ceil(length / l_sel), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("l", "d", "l_sel"), SHAPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_scores_equal_the_reference(length, l, d, l_sel, groups, dtype):
    p = probabilities(length, l=l, d=d, dtype=dtype)
    scores = block_scores(p, groups=groups, l=l, d=d, l_sel=l_sel)
    exact = reference.block_scores(p, groups=groups, l=l, d=d, l_sel=l_sel)
    terms = 4 // groups * (l_sel // d + l // d)
    assert budget.error(scores, exact) <= budget.steps(dtype, roundings=1, terms=terms)


@pytest.mark.parametrize("n_sel", [3, 4, 16])
@pytest.mark.parametrize("l_sel", [16, 64])
@pytest.mark.parametrize("length", LENGTHS)
def test_choice_equals_the_reference_on_identical_scores(length, l_sel, n_sel):
    scores = random_scores(length, l_sel=l_sel)
    chosen = select_blocks(scores, l_sel=l_sel, n_sel=n_sel)
    assert chosen.dtype == torch.int64
    assert torch.equal(chosen, reference.select_blocks(scores, l_sel=l_sel, n_sel=n_sel))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e6])
def test_ties_go_to_the_lower_index(size, dtype):
    scores = (random_scores(200, l_sel=8) * 3).round().to(dtype) * size
    chosen = select_blocks(scores, l_sel=8, n_sel=7)
    assert torch.equal(chosen, reference.select_blocks(scores, l_sel=8, n_sel=7))
    equal = select_blocks(torch.full_like(scores, size), l_sel=8, n_sel=7)
    assert equal[0, 0, 199].tolist() == [0, 1, 2, 3, 4, 23, 24]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_last_bit_of_a_score_decides(size, dtype):
    scores = torch.full((1, 1, 200, 25), size, dtype=dtype)
    scores[..., [9, 20]] = torch.nextafter(scores, scores * 2)[..., :2]
    assert select_blocks(scores, l_sel=8, n_sel=6)[0, 0, 199].tolist() == [0, 1, 9, 20, 23, 24]


def test_more_blocks_than_there_are_is_padded():
    chosen = select_blocks(random_scores(40, l_sel=16), l_sel=16, n_sel=5)
    assert chosen[0, 0, [0, 16, 39]].tolist() == [[0, -1, -1, -1, -1], [0, 1, -1, -1, -1], [0, 1, 2, -1, -1]]


def test_the_fixed_blocks_are_in_whatever_their_score():
    scores = random_scores(200, l_sel=8) + 1
    rows = torch.arange(200) // 8
    for fixed in (torch.zeros_like(rows), rows, (rows - 1).clamp(min=0)):
        scores.scatter_(-1, fixed.expand(2, 2, -1)[..., None], 0.0)
    chosen = select_blocks(scores, l_sel=8, n_sel=4)
    for fixed in (torch.zeros_like(rows), rows, (rows - 1).clamp(min=0)):
        assert (chosen == fixed[:, None]).any(-1).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    scores = random_scores(40, l_sel=16)
    scores[1, 1, 30, 1] = bad
    with pytest.raises(FloatingPointError):
        select_blocks(scores, l_sel=16, n_sel=3)


def test_no_gradient_and_no_graph():
    p = probabilities(100, l=8, d=4).requires_grad_()
    scores = block_scores(p, groups=2, l=8, d=4, l_sel=16)
    assert not scores.requires_grad
    assert not select_blocks(p.sum(1)[:, None, :, :7] * 1, l_sel=16, n_sel=3).requires_grad


@pytest.mark.parametrize(("l", "d", "l_sel"), SHAPES)
def test_the_future_changes_neither_scores_nor_choice(l, d, l_sel):
    length, token = 200, 117
    q, k = torch.randn(1, 4, length, 8), torch.randn(1, 2, (length - l) // d + 1, 8)
    edited_q = torch.cat([q[:, :, :token], torch.randn_like(q[:, :, token:])], dim=2)
    in_future = torch.arange(k.shape[2]) * d + l - 1 >= token
    edited_k = torch.where(in_future[:, None], torch.randn_like(k), k)

    def run(q, k):
        scores = block_scores(compressed_probabilities(q, k, l=l, d=d), groups=2, l=l, d=d, l_sel=l_sel)
        return scores, select_blocks(scores, l_sel=l_sel, n_sel=4)

    for before, after in zip(run(q, k), run(edited_q, edited_k), strict=True):
        assert torch.equal(before[:, :, :token], after[:, :, :token])
        assert not torch.equal(before[:, :, token:], after[:, :, token:]) or l_sel == 64


def test_no_block_of_the_future_is_chosen_though_it_scores_highest():
    scores = random_scores(200, l_sel=8)
    scores += 10 * torch.arange(25)
    chosen = select_blocks(scores, l_sel=8, n_sel=5)
    assert (chosen * 8 <= torch.arange(200)[:, None]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choice_from_low_precision_differs_only_where_the_margin_is_within_the_budget(dtype):
    l, d, l_sel, n_sel, length = 8, 4, 16, 5, 200
    exact_q, exact_k = (torch.randn(2, 4, s, 16, dtype=torch.float64) for s in (length, (length - l) // d + 1))
    q, k = exact_q.to(dtype), exact_k.to(dtype)
    scores = block_scores(compressed_probabilities(q, k, l=l, d=d), groups=2, l=l, d=d, l_sel=l_sel)
    exact_p = reference.compressed_probabilities(exact_q, exact_k, l=l, d=d)
    exact = reference.block_scores(exact_p, groups=2, l=l, d=d, l_sel=l_sel)

    own = torch.arange(length)[:, None] // l_sel
    block = torch.arange(exact.shape[-1])
    free = (block > 0) & (block < own - 1)
    # q and k are rounded once; the rest is float32, the sum over heads and blocks included.
    sums = 2 * (l_sel // d + l // d) * budget.unit(torch.float32)
    allowed = budget.probability_bound(exact_q, exact_k, scale=0.25, inherited=budget.unit(dtype)) + sums
    ranked = exact.masked_fill(~free, -math.inf).sort(dim=-1, descending=True).values
    decided = free.sum(-1) > n_sel - 3
    last, next_ = ranked[..., n_sel - 4], ranked[..., n_sel - 3]
    clear = decided & (last - next_ > allowed * (last + next_))
    chosen = select_blocks(scores, l_sel=l_sel, n_sel=n_sel)
    true = reference.select_blocks(exact, l_sel=l_sel, n_sel=n_sel)
    assert torch.equal(chosen[clear], true[clear])
    assert clear.sum() > 0.1 * decided.expand_as(clear).sum(), "too few rows are judged"
