"""The step of the whole model: `fused` and `masked` against the same model with dense attention.

Loss, backward and optimizer, as in training, with gradient checkpointing. A round gives each model one step, so that a
drift of clock or heat meets all alike. At the shorter lengths, compiled or under a CUDA graph too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs.training_case import training_case
from nsa_lib.subject import training
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import data
from tests.bench_gpu.contestants import FUSED, MASKED_LONGEST
from tests.bench_gpu.measure import attempt
from tests.bench_gpu.rows import COMPILED, EAGER, GRAPH, MODEL, Row
from tests.bench_gpu.timing import Call, Clock, Timing
from tests.made import resolved

LENGTHS = (2048, 8192, 32768)

ROUNDS = 5
"""Steps of each model that are counted, after one that is not."""

ATTENTION = (FUSED, "masked", "dense")


def checklist_case(profile: str) -> CaseConfig:
    """Return the training of a profile's smoke; its length and attention are replaced."""
    return training_case(resolved("smoke", {}, profile=profile))


class Stepper:
    """A model in training, one step a call."""

    def __init__(self, case: CaseConfig, attention: str, *, compiled: bool = False):
        kind = {"attention": "dense"} if attention == "dense" else {"backend": attention}
        torch.manual_seed(case.seed)
        with torch.device(case.device):
            self.model = TinyLM(replace(case.model, **kind), grad_checkpointing=case.grad_checkpointing)
        self.model.to(getattr(torch, case.dtype))
        if compiled:
            self.model.compile_blocks()
        self.optimizer = training.make_optimizer(self.model, case.lr)
        self.tokens = next(data.batches(case)).to(case.device)

    def __call__(self) -> None:
        training.train_step(self.model, self.optimizer, self.tokens)


def captured_step(case: CaseConfig, attention: str, clock: Clock) -> Call:
    """Return the step of a model in training, captured as one CUDA graph."""

    def prepare() -> Stepper:
        step = Stepper(case, attention)
        for group in step.optimizer.param_groups:
            group["capturable"] = True
        return step

    return clock.capture(prepare, calls=1)


def model_rows(case: CaseConfig, seq_len: int, clock: Clock, *, other_modes: tuple[str, ...]) -> list[Row]:
    """Return the step time of every model at one length; in `other_modes` (see `rows`) that of the faster two."""
    case = replace(case, seq_len=seq_len)
    rows = []
    able = [name for name in ATTENTION if name != "masked" or seq_len <= MASKED_LONGEST]
    rows += _in_turns({name: lambda name=name: Stepper(case, name) for name in able}, EAGER, seq_len, clock)
    rows += [
        Row(
            MODEL, seq_len, "model", name, "step", EAGER, reason=f"makes a T x T mask; tried up to S={MASKED_LONGEST:,}"
        )
        for name in ATTENTION
        if name not in able
    ]
    build = {
        COMPILED: lambda name: Stepper(case, name, compiled=True),
        GRAPH: lambda name: captured_step(case, name, clock),
    }
    for mode in other_modes:
        rows += _in_turns({n: lambda n=n, m=mode: build[m](n) for n in (FUSED, "dense")}, mode, seq_len, clock)
    return rows


def _in_turns(builders: dict[str, Callable[[], Call]], mode: str, seq_len: int, clock: Clock) -> list[Row]:
    """Build the models, let each take a step in turn, and return a row each."""
    steppers: dict[str, Call] = {}
    times_ms: dict[str, list[float]] = {name: [] for name in builders}
    reasons, first_s = dict.fromkeys(builders, ""), {}

    def begin(name: str) -> None:
        def first_step() -> None:
            steppers[name] = builders[name]()
            steppers[name]()

        first_s[name] = clock.once_s(first_step)

    def step(name: str) -> None:
        times_ms[name].append(1000 * clock.once_s(steppers[name]))

    for turn in range(ROUNDS + 2):
        for name in builders:
            if not reasons[name]:
                reasons[name] = attempt(lambda name=name, turn=turn: step(name) if turn else begin(name))
    rows = []
    for name, reason in reasons.items():
        row = Row(MODEL, seq_len, "model", name, "step", mode, reason=reason, first_call_s=first_s.get(name))
        if not reason:
            timing = Timing.of(times_ms[name][1:])  # the second step still fills caches
            row = replace(row, median_ms=timing.median_ms, low_ms=timing.low_ms, high_ms=timing.high_ms)
        rows.append(row)
    steppers.clear()
    clock.release()
    return rows
