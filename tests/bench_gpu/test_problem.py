import pytest
import torch

from tests.bench_gpu import problem as problems
from tests.bench_gpu.contestants import fused_choice
from tests.bench_gpu.problem import (
    CAPTURED,
    LAYOUTS,
    REDRAWN,
    RISING,
    SLOW,
    SLOW_OVER,
    Problem,
    kept_blocks,
    random_blocks,
)
from tests.bench_selection.captured import continued
from tests.bench_selection.layers import union_size


def blocks(length, *, groups=2, l_sel=16, n_sel=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return random_blocks(groups, length, l_sel=l_sel, n_sel=n_sel, generator=generator, device="cpu")


@pytest.mark.parametrize("length", [1, 16, 33, 250])
def test_a_random_selection_keeps_the_rules(length):
    found = blocks(length)
    assert found.shape == (1, 2, length, 6)
    assert found.dtype == torch.int32
    for group in found[0].tolist():
        for query, row in enumerate(group):
            own = query // 16
            chosen = [block for block in row if block >= 0]
            assert row == chosen + [-1] * (6 - len(chosen))
            assert chosen == sorted(set(chosen))
            assert len(chosen) == min(own + 1, 6)
            assert {0, max(own - 1, 0), own} <= set(chosen) <= set(range(own + 1))


def kept(length, redrawn, *, groups=2):
    generator = torch.Generator().manual_seed(0)
    return kept_blocks(groups, length, l_sel=16, n_sel=6, redrawn=redrawn, generator=generator, device="cpu")


@pytest.mark.parametrize("redrawn", [1.0, 0.1, 0.0])
def test_a_selection_that_changes_slowly_keeps_the_rules(redrawn):
    found = kept(400, redrawn)
    assert (found.shape, found.dtype) == ((1, 2, 400, 6), torch.int32)
    for query, row in enumerate(found[0, 1].tolist()):
        own = query // 16
        chosen = [block for block in row if block >= 0]
        assert row == sorted(set(chosen)) + [-1] * (6 - len(chosen))
        assert len(chosen) == min(own + 1, 6)
        assert {0, max(own - 1, 0), own} <= set(chosen) <= set(range(own + 1))


@pytest.mark.parametrize("redrawn", [0.5, 0.1])
def test_that_share_of_places_is_drawn_anew(redrawn):
    found = kept(8000, redrawn)[0, :, 4000:]
    pairs = found[:, 1:, :, None] == found[:, :-1, None]
    same_own = torch.arange(4001, 8000) % 16 > 0  # where no near block changes
    kept_share = pairs.any(-1)[:, same_own].sum(-1).float().mean() - 3
    assert abs(kept_share / 3 - (1 - redrawn)) < 0.03  # a new draw is seldom the old block


def test_the_same_few_blocks_for_all():
    assert set(kept(400, 0.0)[0, :, 200].flatten().tolist()) == {0, 1, 2, 3, 11, 12}


def test_a_problem_is_given_another_selection():
    problem = Problem.random(LAYOUTS["H=12 G=12 D=64"], 2048, dtype=torch.bfloat16, device="cpu")
    assert problem.choosing("") is problem
    for name in REDRAWN:
        other = problem.choosing(name)
        assert other.blocks.shape == problem.blocks.shape
        assert not torch.equal(other.blocks, problem.blocks)
        assert other.tensors is problem.tensors


def test_a_captured_selection_is_continued_to_the_problems_length(monkeypatch):
    c, generator = LAYOUTS["H=64 G=4 D=128"], torch.Generator().manual_seed(0)
    sizes = {"l_sel": c.l_sel, "n_sel": c.n_sel, "redrawn": 0.1}
    kept = kept_blocks(2, 2048, **sizes, generator=generator, device="cpu")[0]
    monkeypatch.setattr(problems, "captured", lambda: kept)
    found = Problem.random(c, 3000, dtype=torch.bfloat16, device="cpu").choosing(CAPTURED)
    assert torch.equal(found.blocks[0], continued(kept, 3000, l_sel=64, groups=4))


SMALL = LAYOUTS["H=12 G=12 D=64"]


def test_scores_that_rise_with_the_index_choose_the_newest_blocks(plain_fused):
    found = Problem.random(SMALL, 4096, dtype=torch.bfloat16, device="cpu").choosing(RISING)
    last = fused_choice(found)[0, :, -1].tolist()
    assert last == [[0, *range(64 - SMALL.n_sel + 1, 64)]] * SMALL.groups
    logits = found.tensors["q"].double() @ found.tensors["k_cmp"].double().mT
    assert (logits.diff(dim=-1) > 0).all()


def test_queries_that_change_slowly_are_as_long_and_choose_alike(plain_fused):
    problem = Problem.random(SMALL, 4096, dtype=torch.float32, device="cpu")
    found = problem.choosing(SLOW)
    assert float(found.tensors["q"].std()) == pytest.approx(float(problem.tensors["q"].std()), rel=0.02)
    assert torch.equal(found.tensors["q"][:, :, SLOW_OVER], problem.tensors["q"][:, :, 1])
    slow, random = (union_size(fused_choice(p)[:, :, 2048:].long(), 64) for p in (found, problem))
    assert slow < 0.8 * random


def test_the_blocks_between_are_chosen_equally_often():
    found = blocks(320, groups=3000)[0, :, -1]  # the last query: own block 19, 17 candidates, 3 drawn
    count = torch.bincount(found.flatten(), minlength=20)[1:18]
    expected = 3000 * 3 / 17
    assert count.sum() == 9000
    assert ((count - expected).abs() < 5 * expected**0.5).all()


def test_groups_and_queries_choose_differently():
    found = blocks(320)
    assert (found[0, 0, 200:] != found[0, 1, 200:]).any()
    assert (found[0, 0, 304] != found[0, 0, 305]).any()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_named_by_its_heads(name):
    c = LAYOUTS[name]
    assert name == f"H={c.heads} G={c.groups} D={c.d_k}"
    assert c.heads * c.d_k == c.dim


def test_a_problem_is_random_in_every_tensor():
    problem = Problem.random(LAYOUTS["H=12 G=12 D=64"], 100, dtype=torch.bfloat16, device="cpu")
    assert problem.tensors["k_cmp"].shape == (1, 12, 6, 64)
    assert all(x.float().std() > 0.1 for x in problem.tensors.values())
    assert 0 < problem.tensors["gates"].min() < problem.tensors["gates"].max() <= 1
    assert torch.equal(problem.token_major_blocks[0, :, 3], problem.blocks[0, 3])
