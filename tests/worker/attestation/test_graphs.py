"""What torch counts of its compilations is what was planted: whole graphs, breaks, compilations again, eager code."""

import pytest
import torch

from nsa_lib.worker.attestation.graphs import compiled_graphs


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch._dynamo.utils.clear_compilation_metrics()
    yield
    torch._dynamo.reset()


def twice(x):
    return (2 * x).sin()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_code_that_compiles_whole_is_one_graph_however_often_it_runs(backend):
    run = torch.compile(twice, backend=backend)
    for _ in range(3):
        run(torch.ones(3, requires_grad=True)).sum().backward()
    assert compiled_graphs() == {
        "graphs": 1, "frames": 1, "eager_frames": 0, "graph_breaks": {}, "recompilations": [],
    }  # fmt: skip


def test_nothing_compiled_is_no_graph():
    twice(torch.ones(3))
    assert compiled_graphs()["graphs"] == 0


def test_a_graph_break_is_counted_with_its_reason():
    def broken(x):
        torch._dynamo.graph_break()
        return x.cos()

    torch.compile(broken, backend="eager")(torch.ones(3))
    (times,) = compiled_graphs()["graph_breaks"].values()
    assert times == 1


def test_code_that_is_compiled_again_says_why():
    run = torch.compile(lambda x, flag: x.sin() if flag else x.cos(), backend="eager")
    run(torch.ones(3), True)
    assert compiled_graphs()["recompilations"] == []
    run(torch.ones(3), False)
    (again,) = compiled_graphs()["recompilations"]
    assert again.startswith("<lambda>: ")
    assert "flag" in again


@torch._dynamo.config.patch(recompile_limit=2)  # a patch of pytest's hides the option when it is undone
def test_code_that_is_compiled_too_often_runs_eagerly_from_then_on():
    run = torch.compile(lambda x, scale: x * scale, backend="eager", dynamic=False)
    for scale in (2.0, 3.0, 4.0):
        run(torch.ones(3), scale)
    found = compiled_graphs()
    assert (found["graphs"], found["frames"], found["eager_frames"]) == (2, 3, 1)
