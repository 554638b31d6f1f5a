from dataclasses import replace

import pytest

from nsa_lib.subject.model import TinyLM
from tests.bench_gpu import model
from tests.bench_gpu.rows import COMPILED, GRAPH, Row
from tests.bench_gpu.timing import WallClock


class CapturingClock(WallClock):
    """A CPU's clock that takes a call for its graph."""

    def capture(self, prepare, *, calls):
        call = prepare()
        assert all(group["capturable"] for group in call.optimizer.param_groups)
        for group in call.optimizer.param_groups:
            group["capturable"] = False  # a CPU refuses it
        return call


@pytest.fixture
def case():
    laptop = model.checklist_case("laptop")
    return replace(laptop, model=replace(laptop.model, layers=1, vocab=64))


def told(rows: list[Row]):
    return {(row.contestant, row.mode): bool(row.reason) for row in rows}


def test_the_faster_two_are_compiled_and_captured_too(case, monkeypatch):
    compiled = []
    monkeypatch.setattr(TinyLM, "compile_blocks", lambda self: compiled.append(self))
    monkeypatch.setattr(model, "FUSED", "packed")  # a backend that needs no GPU stands in
    monkeypatch.setattr(model, "ATTENTION", ("packed", "masked", "dense"))
    rows = model.model_rows(case, 96, CapturingClock(), other_modes=(COMPILED, GRAPH))
    eager = {("packed", "eager"), ("masked", "eager"), ("dense", "eager")}
    both = {(name, mode) for name in ("packed", "dense") for mode in ("compiled", "graph")}
    assert told(rows) == dict.fromkeys(eager | both, False)
    assert len(compiled) == 2
    assert all(0 < row.low_ms <= row.median_ms <= row.high_ms and row.first_call_s > 0 for row in rows)


def test_a_step_that_cannot_be_captured_says_so(plain_fused, case, monkeypatch):
    monkeypatch.setattr(TinyLM, "compile_blocks", lambda self: None)
    rows = model.model_rows(case, 96, WallClock(), other_modes=(COMPILED, GRAPH))
    graphs = [row for row in rows if row.mode == "graph"]
    assert [row.reason for row in graphs] == ["RuntimeError: a CPU has no CUDA graphs"] * 2
    assert [row.median_ms for row in graphs] == [None, None]


def test_beyond_the_masks_longest_it_is_a_row_that_says_why(plain_fused, case, monkeypatch):
    monkeypatch.setattr(model, "MASKED_LONGEST", 64)
    (masked,) = [r for r in model.model_rows(case, 96, WallClock(), other_modes=()) if r.contestant == "masked"]
    assert masked.reason == "makes a T x T mask; tried up to S=64"
    assert masked.median_ms is None
