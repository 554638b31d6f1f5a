from dataclasses import replace

import pytest
import torch

from nsa_lib.subject.config import NSAConfig
from tests.bench_gpu import floors
from tests.bench_gpu.contestants import contestants
from tests.bench_gpu.floors import BACKWARD, FORWARD, PARTS, Ceilings
from tests.bench_gpu.problem import LAYOUTS, Problem

CONFIG = NSAConfig(dim=8, heads=4, groups=2, d_k=16, d_v=8, l=16, d=8, l_sel=32, n_sel=4, w=40)

LENGTH = 250


def seen(kind, query, blocks):
    """The keys that a query may see, by the rules, one by one."""
    if kind == "compressed":
        return [i for i in range((LENGTH - 16) // 8 + 1) if i * 8 + 16 - 1 <= query]
    keys = range(query + 1)
    if kind == "selected":
        return [key for key in keys if key // 32 in blocks]
    return [key for key in keys if kind == "causal" or key > query - 40]


@pytest.mark.parametrize("kind", ["causal", "compressed", "selected", "recent"])
def test_pairs_are_those_of_a_count_by_the_rules(kind):
    selection = Problem.random(CONFIG, LENGTH, dtype=torch.float32, device="cpu").blocks[0, 1].tolist()
    counted = sum(len(seen(kind, query, selection[query])) for query in range(LENGTH))
    assert floors.pairs(kind, CONFIG, LENGTH) == counted


def test_a_query_far_from_the_start_takes_4_n_l_d_flop():
    c = LAYOUTS["H=12 G=12 D=64"]
    at_65536 = floors.flop("selected", c, 65536, FORWARD)
    assert at_65536 == pytest.approx(12 * 65536 * 4 * 16 * 64 * 64, rel=0.05)
    assert floors.flop("selected", c, 65536, BACKWARD) == 2.5 * at_65536
    assert floors.flop("dense", c, 2048, FORWARD) == 12 * 4 * 64 * 2048 * 2049 // 2


@pytest.mark.parametrize(("groups", "times"), [(4, 1), (2, 2)])
def test_the_whole_is_its_parts_but_for_logits_that_two_of_them_share(groups, times):
    c = replace(CONFIG, groups=groups)
    logits = c.heads * floors.pairs("compressed", c, LENGTH) * 2 * c.d_k
    assert floors.flop("choice", c, LENGTH, FORWARD) == times * logits
    parts = ("compressed", "choice", "selected", "sliding")
    forward = sum(floors.flop(part, c, LENGTH, FORWARD) for part in parts)
    assert floors.flop("whole", c, LENGTH, FORWARD) == forward - logits
    backward = sum(floors.flop(part, c, LENGTH, BACKWARD) for part in parts if part != "choice")
    assert floors.flop("whole", c, LENGTH, BACKWARD) == backward


def test_products_are_counted_as_torch_counts_them():
    """On keys that all queries see, with torch's own counter as the judge."""
    from torch.utils.flop_counter import FlopCounterMode

    q, k, v = (torch.randn(rows, width, requires_grad=True) for rows, width in ((30, 16), (40, 16), (40, 8)))
    with FlopCounterMode(display=False) as forward:
        out = (q @ k.T).softmax(-1) @ v
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    pairs = 30 * 40
    assert forward.get_total_flops() == pairs * (2 * 16 + 2 * 8)
    remade = pairs * 2 * 16  # the logits, which plain autograd keeps and a kernel makes again
    assert backward.get_total_flops() + remade == pairs * (6 * 16 + 4 * 8)
    dense = floors.flop("dense", CONFIG, LENGTH, BACKWARD)
    assert dense == CONFIG.heads * floors.pairs("causal", CONFIG, LENGTH) * (6 * 16 + 4 * 8)


@pytest.mark.parametrize("contestant", contestants(CONFIG, "cpu"), ids=lambda c: f"{c.part}-{c.name}")
def test_bytes_are_those_of_the_tensors(contestant):
    problem = Problem.random(CONFIG, LENGTH, dtype=torch.bfloat16, device="cpu")
    inputs = sum(problem.tensors[name].nbytes for name in contestant.reads)
    part = contestant.part
    out, lse, blocks = problem.tensors["cotangent"].nbytes, 4 * CONFIG.heads * LENGTH, problem.blocks.nbytes
    if part == "choice":
        inputs = problem.tensors["q"].nbytes + problem.tensors["k_cmp"].nbytes
        assert floors.moved_bytes(part, CONFIG, LENGTH, FORWARD, 2) == inputs + blocks
        return
    also = blocks if part == "selected" else 0
    assert floors.moved_bytes(part, CONFIG, LENGTH, FORWARD, 2) == inputs + also + out
    kept = 3 * (out + lse) + blocks if part == "whole" else out + lse
    assert floors.moved_bytes(part, CONFIG, LENGTH, BACKWARD, 2) == 2 * inputs + also + kept + out


def test_the_floor_is_the_larger_of_both_times():
    slow_copy = Ceilings(copy_gb_per_s=1.0, matmul_tflop_per_s=1e9)
    moved = floors.moved_bytes("sliding", CONFIG, LENGTH, FORWARD, 2)
    assert floors.floor_ms("sliding", CONFIG, LENGTH, FORWARD, 2, slow_copy) == pytest.approx(moved / 1e6)
    slow_product = Ceilings(copy_gb_per_s=1e9, matmul_tflop_per_s=1e-3)
    work = floors.flop("dense", CONFIG, LENGTH, FORWARD)
    assert floors.floor_ms("dense", CONFIG, LENGTH, FORWARD, 2, slow_product) == pytest.approx(work / 1e6)


def test_every_contestant_has_a_part():
    assert {c.part for c in contestants(CONFIG, "cpu")} == set(PARTS)
