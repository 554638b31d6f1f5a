"""PyTorch's attention is called in one place, and only on rows without gaps."""

import ast
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import nsa_lib
from nsa_lib.subject.attention import NSAttention
from nsa_lib.subject.attention.sdpa import attend
from nsa_lib.subject.config import NSAConfig


def test_it_is_softmax_attention_on_cut_and_transposed_rows():
    wide = torch.randn(2, 9, 3 * 4 * 5 + 7, dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (4, 5)).transpose(1, 2) for part in wide[..., :60].split(20, dim=-1))
    logits = (q @ k.mT * 0.3).masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(attend(q, k, v, scale=0.3, causal=True), logits.softmax(-1) @ v)


def test_every_row_that_it_gets_lies_without_gaps(monkeypatch):
    given = []

    def watched(q, k, v, **more):
        given.extend((q, k, v))
        return original(q, k, v, **more)

    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    config = NSAConfig(dim=24, heads=6, groups=3, d_k=8, d_v=4, l=16, d=16, l_sel=32, n_sel=3, w=40)
    for length in (30, 90):  # within the window and beyond it
        NSAttention(config)(torch.randn(2, length, 24))
    assert len(given) == 12
    assert all(x.is_contiguous() for x in given)


def test_the_gradient_of_its_output_lies_without_gaps(monkeypatch):
    seen = []
    original = F.scaled_dot_product_attention

    def watched(*tensors, **more):
        output = original(*tensors, **more)
        output.register_hook(lambda gradient: seen.append(gradient.stride()))
        return output

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    q = torch.randn(2, 3, 8, 4, requires_grad=True)
    gradient = torch.randn(2, 8, 3, 4).transpose(1, 2)
    attend(q, q, q).backward(gradient)
    attend(q, q, q).sum().backward()
    assert seen == [(96, 32, 4, 1)] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [64, 349, 2048])
def test_gradients_do_not_depend_on_the_layout_that_an_earlier_call_had(dtype, length):
    q, k, v, gradient = (torch.randn(2, 1, length, 64, device="cuda", dtype=dtype) for _ in range(4))
    bias = torch.full((2, 1, length, length), -torch.inf, device="cuda", dtype=dtype).triu(1)
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    exact = ((leaves[0] @ leaves[1].mT / 8 + bias.double()).softmax(-1) @ leaves[2],)
    exact = torch.autograd.grad(exact, leaves, gradient.double())
    interleaved = gradient.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)
    for laid_out in (gradient, interleaved, gradient):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        found = torch.autograd.grad(attend(*leaves, bias=bias), leaves, laid_out)
        for mine, true in zip(found, exact, strict=True):
            assert (mine.double() - true).norm() <= 0.02 * true.norm()


def test_nothing_else_calls_it():
    package = Path(nsa_lib.__file__).parent
    callers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "scaled_dot_product_attention"
    }
    assert callers == {"subject/attention/sdpa.py"}
