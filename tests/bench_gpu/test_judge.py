import pytest
import torch

from nsa_lib.subject.config import NSAConfig
from tests import stand_in
from tests.bench_gpu.contestants import FLA, FUSED, contestants
from tests.bench_gpu.judge import judge as judge_queries
from tests.bench_gpu.problem import Problem

CONFIG = NSAConfig(dim=8, heads=4, groups=2, d_k=16, d_v=8, l=16, d=8, l_sel=32, n_sel=4, w=40)

FIELD = {(c.part, c.name): c for c in contestants(CONFIG, "cpu") if c.name != FLA}


def judge(contestant, problem, queries=233):
    return judge_queries(contestant, problem, queries=queries)


def problem(dtype=torch.float32):
    return Problem.random(CONFIG, 233, dtype=dtype, device="cpu")


@pytest.mark.parametrize("queries", [233, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("contestant", FIELD.values(), ids=lambda c: f"{c.part}-{c.name}")
def test_a_right_contestant_is_within_its_budget(contestant, dtype, queries, plain_fused):
    judged = judge(contestant, problem(dtype), queries)
    assert judged.wrong == ""
    assert len(judged.errors) == (len(contestant.reads) + 1 if contestant.reads else 2)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.05 * gradient


@pytest.mark.parametrize("part", ["whole", "selected", "compressed", "sliding"])
def test_a_wrong_output_is_seen(part, plain_fused, monkeypatch):
    name = "selected_attention" if part == "selected" else "nsa"
    right = getattr(plain_fused, name)

    def one_row_is_zero(*args, **options):
        out = right(*args, **options).clone()
        out[:, 0, 150] = 0
        return out

    monkeypatch.setattr(plain_fused, name, one_row_is_zero)
    assert "output" in judge(FIELD[part, FUSED], problem(torch.bfloat16)).wrong


def test_a_wrong_gradient_is_seen_and_named(plain_fused, monkeypatch):
    right = plain_fused.selected_attention
    monkeypatch.setattr(
        plain_fused, "selected_attention", lambda q, k, v, *a, **o: right(q, WrongGradient.apply(k), v, *a, **o)
    )
    for queries in (233, 16):
        judged = judge(FIELD["selected", FUSED], problem(torch.bfloat16), queries)
        assert judged.wrong.startswith("gradient of k_slc: error 5.")


def test_nan_is_wrong(plain_fused, monkeypatch):
    monkeypatch.setattr(
        stand_in, "sliding_attention", lambda q, k, v, **o: q[..., :8] * float("nan") + k.sum() + v.sum()
    )
    assert "output" in judge(FIELD["sliding", FUSED], problem()).wrong


def padding_at_the_start(found):
    return found.flip(-1)


def twice_the_same(found):
    found[..., 1] = torch.where(found[..., 2] >= 0, found[..., 2], found[..., 1])
    return found


def without_block_0(found):
    found[:, :, 200, 0] = 1
    return found


def the_lowest_score(found):
    """Takes for the one ranked block of the last query (block 7) each other that it could have chosen."""
    ranked = int(found[0, 0, 232, 1])
    found[0, 0, 232, 1] = 1 if ranked != 1 else 2
    return found


def the_future(found):
    found[:, :, 100, 3] = 6
    return found


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (padding_at_the_start, "rules"),
        (twice_the_same, "rules"),
        (without_block_0, "rules"),
        (the_future, "rules"),
        (the_lowest_score, "given away"),
    ],
)
def test_a_wrong_choice_is_seen(fault, seen, plain_fused, monkeypatch):
    right = plain_fused.chosen_blocks
    monkeypatch.setattr(plain_fused, "chosen_blocks", lambda *a, **o: fault(right(*a, **o).clone()))
    judged = judge(FIELD["choice", FUSED], problem())
    assert seen in judged.wrong
