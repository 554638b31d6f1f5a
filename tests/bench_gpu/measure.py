"""Measure one contestant on one problem: forward and backward, eager and under a CUDA graph, time and memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from nsa_lib.subject.config import NSAConfig
from tests.bench_gpu.contestants import Contestant, contestants, why_not
from tests.bench_gpu.floors import BACKWARD, FORWARD, Ceilings, floor_ms
from tests.bench_gpu.judge import Judgement, judge
from tests.bench_gpu.problem import Problem
from tests.bench_gpu.rows import EAGER, GRAPH, Row
from tests.bench_gpu.timing import Call, Clock, Timing

CALL_LIMIT_MS = 500.0
"""A backend that takes longer a call is not timed: one figure would take seconds, and say no more."""

GRAPH_LIMIT_MS = 25.0
"""Calls that take longer are not measured under CUDA graphs."""


SAMPLED_QUERIES = 64
"""Queries that are compared with float64 at each length that is timed; at the shortest, apart, all are."""


class TooSlowError(Exception):
    """A call takes longer than CALL_LIMIT_MS."""


def attempt(work: Callable[[], None]) -> str:
    """Do some work and return why it failed, or nothing.

    Whatever one contestant raises, out of memory, a compiler's error, a missing package, is its own result; the others
    go on.
    """
    try:
        work()
    except TooSlowError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    return ""


class Heat:
    """All contestants of one layout: compared with float64 once, then measured at each length."""

    def __init__(
        self,
        layout: str,
        config: NSAConfig,
        clock: Clock,
        ceilings: Ceilings,
        dtype: torch.dtype,
        *,
        others: bool = True,
    ):
        self.layout, self.config, self.clock, self.ceilings, self.dtype = layout, config, clock, ceilings, dtype
        self.field = contestants(config, clock.device, others=others)
        self.checks: list[dict] = []
        """What the comparisons found: errors, budgets, seconds with compiling, why not."""
        self._failed: dict[Contestant, str] = {}
        self._judged: dict[tuple[Contestant, int], Judgement] = {}
        self._check_length = 0
        self._call_ms: dict[Contestant, tuple[int, float]] = {}
        """The length at which a contestant was last timed, and its slower direction there."""

    def check(self, length: int) -> None:
        """Compare every contestant that applies with float64, at all queries of a short problem.

        One that fails is not tried again. One that is wrong is timed all the same, but its rows say so and count for
        nothing (see `rows.Row.counted_ms`).
        """
        self._check_length = length
        problem = Problem.random(self.config, length, dtype=self.dtype, device=self.clock.device)
        for contestant in self.field:
            if not why_not(contestant, self.config, length):
                self._failed[contestant] = attempt(lambda c=contestant: self._judge(c, problem, queries=length))
                self.clock.release()

    def _judge(self, contestant: Contestant, problem: Problem, *, queries: int) -> None:
        problem = problem.choosing(contestant.selection)
        about = {"layout": self.layout, "part": contestant.part, "contestant": contestant.name}
        check = {**about, "seq_len": problem.length, "queries": queries}
        found: list[Judgement] = []
        check["seconds"] = self.clock.once_s(lambda: found.append(judge(contestant, problem, queries=queries)))
        (judgement,) = found
        self._judged[contestant, problem.length] = judgement
        # JSON has no infinity and no NaN; what is not finite is wrong, and that is said beside it.
        errors = {name: error if math.isfinite(error) else None for name, error in judgement.errors.items()}
        self.checks.append({**check, "errors": errors, "allowed": judgement.allowed, "wrong": judgement.wrong})

    def _verdict(self, contestant: Contestant, length: int) -> dict:
        """Return a contestant's largest error and what was wrong, at the check and at a length."""
        judged = [
            self._judged[key] for key in ((contestant, self._check_length), (contestant, length)) if key in self._judged
        ]
        worst = max((judgement.worst for judgement in judged), default=None)
        wrong = "; ".join(dict.fromkeys(judgement.wrong for judgement in judged if judgement.wrong))
        finite = worst is not None and math.isfinite(worst)
        return {"error": worst if finite else None, "reason": f"wrong: {wrong}" if wrong else ""}

    def measure(self, contestant: Contestant, problem: Problem) -> list[Row]:
        """Return the rows of one contestant at one length."""
        reason = (
            why_not(contestant, self.config, problem.length)
            or self._failed.get(contestant, "")
            or self._too_slow(contestant, problem.length)
        )
        if reason:
            return [
                self._row(contestant, problem, direction, EAGER, reason=reason) for direction in _directions(contestant)
            ]
        rows: list[Row] = []
        reason = attempt(lambda: self._measure_eager(contestant, problem, rows))
        done = {row.direction for row in rows}
        rows += [self._row(contestant, problem, direction, EAGER, reason=reason)
                 for direction in _directions(contestant) if direction not in done]  # fmt: skip
        self.clock.release()
        return rows

    def measure_graphs(self, problem: Problem) -> list[Row]:
        """Return the rows under CUDA graphs of all that were timed at a length, and fast enough for launches to matter.

        Forward first: after a capture that fails there is no other, and a backward is the likelier to fail.
        """
        rows = []
        for direction in (FORWARD, BACKWARD):
            for contestant in self.field:
                timed_at, call_ms = self._call_ms.get(contestant, (0, 0.0))
                was_timed = timed_at == problem.length and call_ms <= GRAPH_LIMIT_MS
                if was_timed and direction in _directions(contestant):
                    rows.append(self._measure_graph(contestant, problem, direction))
                    self.clock.release()
        return rows

    def skipped(self, contestant: Contestant, length: int, reason: str) -> list[Row]:
        """Return the rows of a contestant whose turn did not come."""
        row = Row(self.layout, length, contestant.part, contestant.name, FORWARD, EAGER, reason=reason)
        return [replace(row, direction=direction) for direction in _directions(contestant)]

    def _measure_eager(self, contestant: Contestant, problem: Problem, rows: list[Row]) -> None:
        """Add a row a direction: the first call, the peak of the second, the time of those after."""
        forward, backward = _calls(contestant, problem)

        def both() -> tuple[object, ...]:
            output = forward()
            return output, backward(output)

        first_s = {FORWARD: self.clock.once_s(forward)}
        if contestant.reads:
            first_s[BACKWARD] = self.clock.once_s(both)
        self._judge(contestant, problem, queries=SAMPLED_QUERIES)
        self.clock.release()
        facts = {"first_call_s": first_s[FORWARD], "extra_mib": self.clock.extra_mib(forward)}
        timing = self._timed(contestant, problem.length, forward)
        rows.append(self._row(contestant, problem, FORWARD, EAGER, timing, **facts))
        slowest_ms = timing.median_ms
        if contestant.reads:
            facts = {"first_call_s": first_s[BACKWARD], "extra_mib": self.clock.extra_mib(both)}
            output = forward()
            timing = self._timed(contestant, problem.length, lambda: backward(output))
            rows.append(self._row(contestant, problem, BACKWARD, EAGER, timing, **facts))
            slowest_ms = max(slowest_ms, timing.median_ms)
        self._call_ms[contestant] = problem.length, slowest_ms

    def _timed(self, contestant: Contestant, length: int, call: Call) -> Timing:
        if contestant.may_be_slow:
            once_ms = 1000 * self.clock.once_s(call)
            if once_ms > CALL_LIMIT_MS:
                self._call_ms[contestant] = length, once_ms  # and so not tried at greater lengths
                raise TooSlowError(f"skipped: a call takes {once_ms:,.0f} ms, tried up to {CALL_LIMIT_MS:,.0f} ms")
        return self.clock.time(call)

    def _measure_graph(self, contestant: Contestant, problem: Problem, direction: str) -> Row:
        """Return the row of one direction under a CUDA graph."""

        def prepare() -> Call:
            forward, backward = _calls(contestant, problem)  # leaves of this stream
            output = forward()
            return forward if direction == FORWARD else lambda: backward(output)

        found: list[Timing] = []
        reason = attempt(lambda: found.append(self.clock.time_graph(prepare)))
        return self._row(contestant, problem, direction, GRAPH, *found, reason=reason)

    def _too_slow(self, contestant: Contestant, length: int) -> str:
        """Return why a contestant is not even tried, from its time at a shorter length: linear growth is the least."""
        if not contestant.may_be_slow or contestant not in self._call_ms:
            return ""
        shorter, call_ms = self._call_ms[contestant]
        expected_ms = call_ms * length / shorter
        if expected_ms <= CALL_LIMIT_MS:
            return ""
        return f"skipped: a call would take {expected_ms:,.0f} ms or more, tried up to {CALL_LIMIT_MS:,.0f} ms"

    def _row(
        self, contestant: Contestant, problem: Problem, direction: str, mode: str, timing: Timing | None = None, **facts
    ) -> Row:
        verdict = self._verdict(contestant, problem.length)
        if timing:
            c, element_bytes = self.config, self.dtype.itemsize
            floor = floor_ms(contestant.part, c, problem.length, direction, element_bytes, self.ceilings)
            facts |= {"median_ms": timing.median_ms, "low_ms": timing.low_ms, "high_ms": timing.high_ms}
            facts |= {"floor_ms": floor, "reason": verdict["reason"]}
        about = (self.layout, problem.length, contestant.part, contestant.name, direction, mode)
        return Row(*about, error=verdict["error"], **facts)


def _directions(contestant: Contestant) -> tuple[str, ...]:
    return (FORWARD, BACKWARD) if contestant.reads else (FORWARD,)


def _calls(contestant: Contestant, problem: Problem):
    """Return the forward, and the backward of its output, over leaves of their own."""
    problem = problem.choosing(contestant.selection)
    leaves = [contestant.turned(problem.tensors[name]).detach().requires_grad_() for name in contestant.reads]
    cotangent = contestant.turned(problem.tensors["cotangent"])

    def backward(output: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(output, leaves, cotangent, retain_graph=True)

    return lambda: contestant.run(problem, *leaves), backward
