"""The gate of compiled layers."""

import pytest

from nsa_lib.judgement.compiled import compiled_gate
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS
from nsa_lib.workbook.smoke.gates import smoke_gates
from tests.made import with_case
from tests.workbook.smoke.made import OPERATORS, ended, healthy

LAYERS = 12
CALLS = {**OPERATORS, "Torch-Compiled Region: 0/0": {"count": LAYERS}}


def compiled(*, calls=CALLS, late=(), early=()):
    """Return a compiled smoke that counted these graphs in its first and last recorded step."""
    run = healthy(compile=True)
    first, *middle, last = run.case("training")["executed"]
    first, last = ({**s, "compiled": {**s["compiled"], **dict(new)}} for s, new in ((first, early), (last, late)))
    run = with_case(run, "training", executed=[first, *middle, last])
    return with_case(run, "profiler", operators={"early": calls, "late": calls})


def judged(run):
    return compiled_gate(run, "training", "profiler")


def test_layers_that_compiled_once_and_whole_pass():
    gate = judged(compiled())
    assert (gate.outcome, gate.required) == (PASS, True)
    assert "1 graph of 1 frame, called 12 times a step in 12 layers" in gate.detail
    again = ["run_block: grad_checkpointing == False"]
    assert judged(compiled(early={"recompilations": again}, late={"recompilations": again})).outcome == PASS


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ({"graphs": 0}, "nothing was compiled"),
        ({"eager_frames": 1, "frames": 9}, "1 of 9 frames run eagerly"),
        ({"graph_breaks": {"call to print": 2}}, "a graph breaks 2 times: call to print"),
        ({"recompilations": ["run_block: size mismatch"]}, "after the first step: run_block: size mismatch"),
    ],
)
def test_what_is_eager_breaks_or_is_compiled_again_fails(late, said):
    gate = judged(compiled(late=late))
    assert (gate.outcome, gate.required) == (FAIL, True)
    assert said in gate.detail


def test_one_layer_that_was_left_out_fails():
    gate = judged(compiled(calls={**OPERATORS, "Torch-Compiled Region: 0/0": {"count": LAYERS - 1}}))
    assert gate.outcome == FAIL
    assert "11 calls of compiled code a step, in 12 layers" in gate.detail


def test_a_layer_that_ran_as_python_fails():
    run = compiled()
    first, *others = run.case("training")["executed"]
    gate = judged(with_case(run, "training", executed=[{**first, "eager_layers": [0, 4]}, *others]))
    assert gate.outcome == FAIL
    assert "layers 1, 5 ran eagerly" in gate.detail


def test_replays_of_a_graph_are_judged_by_the_layers_that_it_captured():
    run = compiled(calls=OPERATORS)
    asked = {**run.case("training")["asked"], "compile": "graph"}
    run = with_case(run, "training", asked=asked)
    assert judged(run).outcome == PASS
    *others, last = run.case("training")["executed"]
    gate = judged(with_case(run, "training", executed=[*others, {**last, "passes": [0] * LAYERS}]))
    assert gate.outcome == FAIL
    assert "0 calls of compiled code a step, in 12 layers" in gate.detail


def test_what_was_not_counted_is_no_pass():
    assert judged(with_case(compiled(), "profiler", operators=None)).outcome == NOT_RUN
    assert judged(with_case(compiled(), "training", executed=None)).outcome == NOT_RUN
    assert judged(healthy()).outcome == NOT_RUN
    seen = compiled().case("training")["executed"]
    cut = ended(compiled(), "interrupted", 90, executed=seen)
    assert judged(cut).outcome == NOT_RUN


def test_a_smoke_has_the_gate_where_it_asks_for_compiled_layers():
    assert "compiled" in {gate.name for gate in smoke_gates(compiled())}
    assert "compiled" not in {gate.name for gate in smoke_gates(healthy())}
