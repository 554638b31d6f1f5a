import dataclasses
import json
import math

import pytest
import torch

from nsa_lib.subject.config import NSAConfig
from tests import stand_in
from tests.bench_gpu import contestants, measure
from tests.bench_gpu.contestants import FLA, FUSED, why_not
from tests.bench_gpu.floors import Ceilings
from tests.bench_gpu.measure import Heat, attempt
from tests.bench_gpu.problem import LAYOUTS, Problem
from tests.bench_gpu.timing import Timing, WallClock, repeats
from tests.bench_selection import captured

CONFIG = NSAConfig(dim=8, heads=4, groups=2, d_k=16, d_v=8, l=16, d=8, l_sel=32, n_sel=4, w=40)


@pytest.fixture(autouse=True)
def _no_limit_on_a_call(monkeypatch):
    # This machine may be busy.
    monkeypatch.setattr(measure, "CALL_LIMIT_MS", math.inf)


class GraphClock(WallClock):
    """A CPU's clock that takes the capture of a graph for a call."""

    def time_graph(self, prepare):
        return self.time(prepare())


def heat():
    return Heat("tiny", CONFIG, GraphClock(), Ceilings(1.0, 1.0), torch.float32)


def problem(length=96):
    return Problem.random(CONFIG, length, dtype=torch.float32, device="cpu")


def contestant(heat, part, name):
    return next(c for c in heat.field if (c.part, c.name) == (part, name))


def test_a_contestant_gets_a_row_each_way_with_its_error_and_floor(plain_fused):
    race = heat()
    race.check(233)
    assert [check["wrong"] for check in race.checks] == [""] * len(race.checks)
    for one in race.field:
        rows = race.measure(one, problem())
        if one.name != FLA and not one.selection:
            assert [row.reason for row in rows] == [""] * len(rows)
            assert [row.direction for row in rows] == ["forward", "backward"][: len(rows)]
            assert len(rows) == (2 if one.reads else 1)
            assert all(row.median_ms > 0 and row.floor_ms > 0 and row.first_call_s > 0 for row in rows)
            assert all(row.low_ms <= row.median_ms <= row.high_ms and row.error < 1e-4 for row in rows)


def test_what_was_timed_is_timed_under_graphs_too_forward_first(plain_fused):
    race = heat()
    race.check(64)
    assert race.measure_graphs(problem()) == []
    for part, name in (("whole", FUSED), ("choice", FUSED), ("sliding", FUSED)):
        race.measure(contestant(race, part, name), problem())
    rows = race.measure_graphs(problem())
    forward, backward = (("whole", "choice", "sliding"), "forward"), (("whole", "sliding"), "backward")
    ways = [(part, direction) for parts, direction in (forward, backward) for part in parts]
    assert [(row.part, row.direction) for row in rows] == ways
    assert all(row.mode == "graph" and row.median_ms > 0 and row.error < 1e-4 for row in rows)
    assert race.measure_graphs(problem(128)) == []


def test_a_graph_that_cannot_be_captured_says_so(plain_fused):
    race = heat()
    race.clock = WallClock()
    race.check(64)
    race.measure(contestant(race, "sliding", FUSED), problem())
    assert [row.reason for row in race.measure_graphs(problem())] == ["RuntimeError: a CPU has no CUDA graphs"] * 2


def test_a_missing_package_is_a_row_that_says_so(no_triton):
    race = heat()
    race.check(64)
    rows = race.measure(contestant(race, "whole", FUSED), problem())
    assert [row.direction for row in rows] == ["forward", "backward"]
    assert all("import of triton" in row.reason and row.median_ms is None for row in rows)
    assert race.measure(contestant(race, "selected", "masked"), problem())[0].reason == ""


def test_a_wrong_contestants_figures_say_so_and_do_not_count(plain_fused, monkeypatch):
    right = stand_in.sliding_attention
    monkeypatch.setattr(stand_in, "sliding_attention", lambda *x, **o: 1.1 * right(*x, **o))
    race = heat()
    race.check(64)
    wrong = [(check["part"], check["contestant"]) for check in race.checks if check["wrong"]]
    assert wrong == [("whole", FUSED), ("sliding", FUSED)]
    rows = race.measure(contestant(race, "sliding", FUSED), problem())
    assert [row.reason.split(": error")[0] for row in rows] == ["wrong: output"] * 2
    assert all(row.median_ms > 0 and row.counted_ms is None and row.error > 0.01 for row in rows)


def test_what_fails_at_a_length_says_so_there(plain_fused, monkeypatch):
    race = heat()
    race.check(64)
    right = stand_in.sliding_attention

    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise torch.OutOfMemoryError("tried to allocate 9 GiB\nand more")

    monkeypatch.setattr(stand_in, "sliding_attention", lambda *x, **o: NoBackward.apply(right(*x, **o)))
    rows = race.measure(contestant(race, "sliding", FUSED), problem())
    assert [(row.direction, row.reason) for row in rows] == [
        ("forward", "OutOfMemoryError: tried to allocate 9 GiB"),
        ("backward", "OutOfMemoryError: tried to allocate 9 GiB"),
    ]
    monkeypatch.setattr(stand_in, "sliding_attention", right)
    assert [row.reason for row in race.measure(contestant(race, "sliding", FUSED), problem(128))] == ["", ""]


def test_what_is_wrong_at_one_length_alone_is_seen_there(plain_fused, monkeypatch):
    """As a kernel is that only long sequences run."""
    right = stand_in.sliding_attention

    def wrong_when_long(q, k, v, **options):
        return right(q, k, v, **options) * (1 if q.shape[2] < 100 else 1.1)

    monkeypatch.setattr(stand_in, "sliding_attention", wrong_when_long)
    race = heat()
    race.check(64)
    sliding = contestant(race, "sliding", FUSED)
    assert [bool(row.reason) for length in (96, 128) for row in race.measure(sliding, problem(length))] == [
        False, False, True, True
    ]  # fmt: skip
    assert [bool(row.reason) for row in race.measure(sliding, problem(96))] == [False, False]


def test_a_slow_backend_is_given_up_and_not_tried_at_greater_lengths(plain_fused, monkeypatch):
    race = heat()
    race.check(64)
    slow = contestant(race, "selected", "packed")
    assert race.measure(slow, problem())[0].reason == ""
    monkeypatch.setattr(measure, "CALL_LIMIT_MS", 1e-6)
    assert "a call would take" in race.measure(slow, problem())[0].reason
    fresh = heat()
    fresh.check(64)
    assert "a call takes" in fresh.measure(contestant(fresh, "selected", "packed"), problem())[1].reason
    assert fresh.measure(fresh.field[0], problem())[0].reason == ""


def test_who_does_not_apply_says_why():
    race = heat()
    fla, masked = contestant(race, "selected", FLA), contestant(race, "selected", "masked")
    one, sixteen = LAYOUTS.values()
    assert "heads / groups >= 16" in why_not(fla, one, 2048)
    assert why_not(fla, sixteen, 65536) == ""
    assert why_not(masked, one, 8192) == ""
    assert "T x T mask" in why_not(masked, one, 32768)


def test_fla_core_reads_tokens_before_heads(plain_fused):
    """Its own call is replaced by a plain one in its layout: what is tried is the turning around it."""
    race = heat()
    fla = contestant(race, "selected", FLA)

    def run(problem, q, k, v):
        assert q.shape[1] == k.shape[1] == problem.length
        assert problem.token_major_blocks.shape[1] == problem.length
        turned = (x.transpose(1, 2) for x in (q, k, v))
        return plain_fused.selected_attention(
            *turned, problem.blocks, l_sel=CONFIG.l_sel, scale=problem.scale
        ).transpose(1, 2)

    race.field = [dataclasses.replace(fla, run=run, name="in fla-core's layout")]
    race.check(100)
    assert race.checks[0]["wrong"] == ""
    assert [row.reason for row in race.measure(race.field[0], problem())] == ["", ""]


def test_a_failure_is_its_first_line():
    def fail():
        raise ValueError("first\nsecond")

    assert attempt(fail) == "ValueError: first"
    assert attempt(lambda: None) == ""


def test_an_interrupt_is_no_failure_of_a_contestant():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(stop)


def test_a_timing_is_median_and_spread():
    timing = Timing.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (timing.low_ms, timing.median_ms, timing.high_ms, timing.calls) == (
        pytest.approx(1.8),
        3,
        pytest.approx(4.2),
        5,
    )


def test_short_calls_are_repeated_more_often():
    assert [repeats(ms) for ms in (0.0, 0.01, 1.0, 500.0)] == [100, 100, 40, 3]


def test_a_selection_that_changes_slowly_is_judged_and_timed_at_great_lengths(plain_fused, monkeypatch):
    monkeypatch.setattr(contestants, "KEPT_SHORTEST", 200)
    race = heat()
    slow = contestant(race, "selected", "fused, 2 % redrawn")
    assert "from S=200 on" in why_not(slow, CONFIG, 199)
    race.check(64)
    assert {row.reason for row in race.measure(slow, problem(199))} == {why_not(slow, CONFIG, 199)}
    rows = race.measure(slow, problem(233))
    assert [(row.direction, row.reason) for row in rows] == [("forward", ""), ("backward", "")]
    assert all(row.median_ms > 0 and row.error < 1e-4 for row in rows)


def test_a_captured_selection_is_judged_and_timed_where_there_is_one(plain_fused, monkeypatch, tmp_path):
    monkeypatch.setattr(contestants, "CAPTURED_SHORTEST", 200)
    monkeypatch.setattr(captured, "FILE", tmp_path / "selection.json")
    race = heat()
    one = contestant(race, "selected", "fused, captured")
    assert "from S=200 on" in why_not(one, CONFIG, 199)
    race.check(64)
    assert ["was captured yet" in row.reason for row in race.measure(one, problem(233))] == [True, True]
    blocks = Problem.random(CONFIG, 512, dtype=torch.float32, device="cpu").blocks[0]
    captured.FILE.write_text(json.dumps({"captured": captured.pack(blocks, CONFIG.l_sel)}))
    rows = race.measure(one, problem(700))
    assert [(row.direction, row.reason) for row in rows] == [("forward", ""), ("backward", "")]
    assert all(row.median_ms > 0 and row.error < 1e-4 for row in rows)


def test_without_others_dense_and_fused_alone_are_measured():
    field = Heat("tiny", CONFIG, GraphClock(), Ceilings(1.0, 1.0), torch.float32, others=False).field
    assert {one.name.split(",")[0] for one in field} == {"math", FUSED}
    assert {one.name for one in heat().field} - {one.name for one in field} == {"masked", "gather", "packed", FLA}
