"""Rows and gradients of the reference agree with its loops, and with the loops' autograd."""

import pytest
import torch

from nsa_lib.subject.attention import NSAttention, reference, reference_rows
from nsa_lib.subject.attention.arithmetic import EXACT, Arithmetic
from nsa_lib.subject.attention.reference_gradients import gradients
from nsa_lib.subject.attention.reference_rows import Layer, rows
from nsa_lib.subject.config import NSAConfig

SIZES = dict(dim=24, heads=4, groups=2, d_k=6, d_v=10, l=8, d=4, l_sel=16, n_sel=4, w=20)
SHAPES = {
    "overlapping blocks": (SIZES, 101),
    "heads are groups": (SIZES | dict(groups=4, l=8, d=8, l_sel=8, n_sel=3, w=1), 50),
    "one group, mean": (SIZES | dict(groups=1, phi="mean", w=200), 83),
    "shorter than a block": (SIZES, 7),
    "one token": (SIZES, 1),
    "without compression": (SIZES | dict(branches=("slc", "win")), 60),
    "compression alone": (SIZES | dict(branches=("cmp",)), 60),
}


@pytest.fixture(params=SHAPES, ids=str)
def case(request):
    sizes, length = SHAPES[request.param]
    return case_of(length, **sizes)


def case_of(length, batch=2, **sizes):
    config = NSAConfig(**sizes)
    parameters = {n: p.detach().double() * 2 for n, p in NSAttention(config).named_parameters()}
    x, cotangent = torch.randn(2, batch, length, config.dim, dtype=torch.float64)
    blocks = None
    if "slc" in config.branches:
        scores = reference.selection_scores(x, parameters, config)
        blocks = reference.select_blocks(scores, l_sel=config.l_sel, n_sel=config.n_sel)
    return config, parameters, x, cotangent, blocks


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def at(blocks, positions):
    return None if blocks is None else blocks[:, :, positions]


def test_rows_are_those_of_the_loops(case):
    config, parameters, x, _, blocks = case
    positions = torch.arange(0, x.shape[1], 3)
    made = rows(Layer.of(x, parameters, config), positions, at(blocks, positions))
    assert_same(made.output, reference.nsa(x, parameters, config)[:, positions])
    if blocks is not None:
        assert_same(made.scores, reference.selection_scores(x, parameters, config)[:, :, positions])
    gates = torch.sigmoid(x @ parameters["branch_gates.weight"].T)[:, positions]
    assert_same(made.branch_gates, gates.unflatten(-1, (config.heads, -1)).transpose(1, 2))
    mixed = sum(made.branch_gates[..., i, None] * made.branches[name] for i, name in enumerate(config.branches))
    assert_same(mixed.transpose(1, 2).flatten(2) @ parameters["out.weight"].T, made.output)


def test_the_blocks_that_a_run_chose_replace_the_choice(case):
    config, parameters, x, _, blocks = case
    if blocks is None:
        pytest.skip("selects nothing")
    other = reference.select_blocks(torch.rand(*blocks.shape[:3], -(-x.shape[1] // config.l_sel)), l_sel=config.l_sel,
                                    n_sel=config.n_sel)  # fmt: skip
    positions = torch.arange(x.shape[1])
    made = rows(Layer.of(x, parameters, config), positions, other)
    assert_same(made.output, reference.nsa(x, parameters, config, other))


def test_gradients_are_those_of_autograd_through_the_loops(case):
    config, parameters, x, cotangent, blocks = case
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    leaf = x.clone().requires_grad_()
    reference.nsa(leaf, leaves, config, blocks).backward(cotangent)
    d_x, found = gradients(Layer.of(x, parameters, config), blocks, cotangent)
    assert_same(d_x, leaf.grad)
    assert set(found) == set(leaves)
    for name, p in leaves.items():
        assert_same(found[name], torch.zeros_like(p) if p.grad is None else p.grad)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("elements", "windows"), [(600, 1), (20_000, 4), (150_000, 2)])
def test_chunks_change_nothing(monkeypatch, groups, elements, windows):
    config, parameters, x, cotangent, blocks = case_of(150, **SIZES | dict(groups=groups))
    layer, positions = Layer.of(x, parameters, config), torch.tensor([0, 1, 5, 77, 78, 120, 149])
    whole = rows(layer, positions, at(blocks, positions)), gradients(layer, blocks, cotangent)
    monkeypatch.setitem(reference_rows.CHUNK_ELEMENTS, "cpu", elements)
    monkeypatch.setitem(reference_rows.WINDOWS, "cpu", windows)
    cut = rows(layer, positions, at(blocks, positions)), gradients(layer, blocks, cotangent)
    assert_same(cut[0].output, whole[0].output)
    assert_same(cut[0].scores, whole[0].scores)
    assert_same(cut[1], whole[1])


@pytest.mark.parametrize(("groups_that_fit", "expected"), [(0.5, [1] * 4), (3.1, [3, 1]), (9, [4])])
def test_as_many_groups_are_taken_together_as_a_chunk_holds(monkeypatch, groups_that_fit, expected):
    config, parameters, x, _, _ = case_of(30, **SIZES | dict(groups=4))
    layer = Layer.of(x, parameters, config)
    monkeypatch.setitem(reference_rows.CHUNK_ELEMENTS, "cpu", int(groups_that_fit * 2 * 11 * 30))
    some = list(reference_rows.groups_of(layer, 11))
    assert [len(groups) for groups in some] == expected
    assert [g for groups in some for g in groups] == list(range(4))


def test_logits_never_exceed_the_chunk(monkeypatch):
    config, parameters, x, cotangent, blocks = case_of(300, **SIZES)
    honest, largest = reference_rows._probabilities, []

    def seen(q, k, mask):
        p = honest(q, k, mask)
        largest.append(p.numel())
        return p

    monkeypatch.setattr(reference_rows, "_probabilities", seen)
    monkeypatch.setitem(reference_rows.CHUNK_ELEMENTS, "cpu", 20_000)
    gradients(Layer.of(x, parameters, config), blocks, cotangent)
    assert len(largest) > 30
    assert max(largest) <= 20_000


def test_exact_is_float64_whatever_comes_in():
    config, parameters, x, _, blocks = case_of(40, **SIZES)
    layer = Layer.of(x.bfloat16(), {n: p.bfloat16() for n, p in parameters.items()}, config)
    made = rows(layer, torch.arange(40), blocks)
    rounded = {n: p.bfloat16().double() for n, p in parameters.items()}
    assert_same(made.output, reference.nsa(x.bfloat16().double(), rounded, config, blocks))


@pytest.mark.parametrize(("dtype", "least", "most"), [
    (torch.float64, 1e-17, 1e-13), (torch.float32, 1e-8, 1e-5), (torch.bfloat16, 1e-3, 5e-2),
])  # fmt: skip
def test_the_arithmetic_of_a_run_is_off_by_what_its_dtype_loses(dtype, least, most):
    config, parameters, x, cotangent, blocks = case_of(120, **SIZES)
    exact, run = (Layer.of(x, parameters, config, arithmetic=a) for a in (EXACT, Arithmetic.of_run(dtype)))
    positions = torch.arange(120)
    right, rounded = (rows(layer, positions, blocks).output for layer in (exact, run))
    assert least < (rounded.double() - right).norm() / right.norm() < most
    (d_x, d_p), (d_x_rounded, d_p_rounded) = (gradients(layer, blocks, cotangent) for layer in (exact, run))
    assert least < (d_x_rounded.double() - d_x).norm() / d_x.norm() < most
    for name, right in d_p.items():
        assert least < (d_p_rounded[name].double() - right).norm() / right.norm() < most, name


def test_whoever_watches_is_called():
    config, parameters, x, cotangent, blocks = case_of(40, **SIZES)
    calls = []
    gradients(Layer.of(x, parameters, config), blocks, cotangent, alive=lambda: calls.append(1))
    assert len(calls) >= config.groups
