import pytest
import torch

from tests.bench_gpu.problem import LAYOUTS, Problem, random_blocks


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
