"""Random rounding passes over what is compiled and over operators of a higher order, as FlexAttention is one."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from nsa_lib.worker.memory import CpuMeter
from nsa_lib.worker.preflight.own.rounded import Rounded
from nsa_lib.worker.profiling import executed_routes

U = 2.0**-8


def test_each_operation_is_rounded_once():
    x = torch.ones(10_000, dtype=torch.float64)
    with Rounded(U, 0):
        found = x * 1 + 0
    off = (found - 1).std().item() / U
    assert 1.3 < off < 1.6  # two roundings: sqrt(2)
    assert not torch.equal(found, x)


@pytest.mark.skipif(not hasattr(torch.utils._python_dispatch.TorchDispatchMode, "ignore_compile_internals"),
                    reason="this torch compiles nothing under a dispatch mode")  # fmt: skip
def test_what_demands_to_be_compiled_runs_under_it():
    compiled = torch.compile(lambda x: x.sin(), backend="eager", fullgraph=True)
    with Rounded(U, 0):
        found = compiled(torch.ones(8)) * 1
    assert 0 < (found - torch.ones(8).sin()).abs().max() < 10 * U
    assert executed_routes(lambda: compiled(torch.ones(8))) == set()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of FlexAttention that it was not compiled
@torch.no_grad()  # it has no backward on a CPU
def test_flex_attention_runs_under_rounding():
    q = torch.randn(1, 2, 128, 16, generator=torch.Generator().manual_seed(0))
    exact = flex_attention(q, q, q)
    with Rounded(U, 0):
        found = flex_attention(q, q, q) * 1
    off = float((found - exact).norm() / exact.norm())
    assert 0 < off < 10 * U
    assert CpuMeter.supports_higher_order_operators
