"""Time contestants against each other in one process. They take turns, A B C A B C, so that a drift of the machine's
clock or heat meets all of them alike.

Memory is not measured here: what one contestant leaves behind would count for the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby

import torch
from torch import nn

from nsa_lib.contract.agenda import DENSE, NO_BACKEND, WARMUP_ROUNDS, Contestant, contestants
from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.subject import training
from nsa_lib.subject.attention import DenseAttention, NSAttention
from nsa_lib.subject.config import BRANCHES, OWN
from nsa_lib.subject.model import TinyLM, make_model
from nsa_lib.subject.own.attention import OwnAttention
from nsa_lib.subject.own.casting import in_dtype
from nsa_lib.subject.own.model import OwnModel
from nsa_lib.worker import data
from nsa_lib.worker.devices import DEVICES
from nsa_lib.worker.profiling import executed_routes


class PhaseClock:
    """Times the phases of one step, waiting for the device at the end of each."""

    def __init__(self, device: str, mark: Callable[[str], None] = lambda phase: None):
        self._wait, self._mark = DEVICES[device].synchronize, mark
        self.phases_ms: dict[str, float] = {}
        """`forward_ms`, `backward_ms`."""
        self._wait()  # what the device was asked before is not part of this step
        self._began = time.perf_counter()

    def mark(self, phase: str) -> None:
        """End a phase."""
        self._wait()
        self.phases_ms[f"{phase}_ms"] = 1000 * (time.perf_counter() - self._began)
        self._mark(phase)
        self._began = time.perf_counter()


def run_timing(case: CaseConfig, heartbeat: Heartbeat) -> Sequence[Mapping[str, object]]:
    """Time every contestant of a case. Each turn has a heartbeat: the contestant, its forward and backward in ms.

    All contestants of one length take turns; `steps` of the case are all their turns together. The heartbeats hold all
    that was found: there are no facts. In its first turn, which does not count, a contestant is watched, and the
    heartbeat says which backends it entered.
    """
    field = contestants(case.seq_len, case.seq_lens, backends=case.backends, brings=case.model.brings)
    rounds, modules = case.steps // len(field), _Modules(case)
    step = 0
    for length, turn in groupby(field, key=lambda contestant: contestant.seq_len):
        heat, inputs = list(turn), _inputs(case, length)
        for number in range(rounds):
            for contestant in heat:
                step += 1
                take = partial(_measure, modules.of(contestant), inputs[contestant.subject], case.device)
                phases_ms, watched = _watched(take) if number == 0 else (take(), {})
                heartbeat.beat(
                    "warmup" if number < WARMUP_ROUNDS else "step",
                    step,
                    **asdict(contestant),
                    **phases_ms,
                    **watched,
                    step_ms=sum(phases_ms.values()),
                )
        del inputs
        DEVICES[case.device].empty_cache()
    return ()


class _Modules:
    """The modules of a case, each built once, with the same weights where the shapes are the same."""

    def __init__(self, case: CaseConfig):
        self._case = case
        self._built: dict[tuple[str, str, str], nn.Module] = {}

    def of(self, contestant: Contestant) -> nn.Module:
        """Return what a contestant runs, at whatever length."""
        key = (contestant.subject, contestant.branches, contestant.backend)
        if key not in self._built:
            torch.manual_seed(self._case.seed)
            module = _model(self._case, contestant) if contestant.subject == "model" else _layer(self._case, contestant)
            self._built[key] = in_dtype(module, getattr(torch, self._case.dtype)).to(self._case.device)
        return self._built[key]


def _layer(case: CaseConfig, contestant: Contestant) -> nn.Module:
    config = case.model.nsa
    if contestant.branches == DENSE:
        return DenseAttention(config)
    if contestant.backend == case.model.attention == OWN:
        return OwnAttention(case.model.own)
    branches = BRANCHES if contestant.branches == "all" else (contestant.branches,)
    layer = replace(config, branches=branches)
    return NSAttention(layer) if contestant.backend == NO_BACKEND else NSAttention(layer, contestant.backend)


def _model(case: CaseConfig, contestant: Contestant) -> TinyLM:
    return make_model(case.model.contestant(contestant.backend), grad_checkpointing=case.grad_checkpointing)


def _inputs(case: CaseConfig, length: int) -> dict[str, tuple[torch.Tensor, ...]]:
    """Return the inputs at a length: of a layer, x and the gradient of its output; of a model, tokens."""
    generator = torch.Generator().manual_seed(case.seed)
    shape, dtype = (case.batch, length, case.model.nsa.dim), getattr(torch, case.dtype)
    x, cotangent = (torch.randn(shape, generator=generator).to(dtype).to(case.device) for _ in range(2))
    tokens = next(data.batches(replace(case, seq_len=length))).to(case.device)
    return {"layer": (x.requires_grad_(), cotangent), "model": (tokens,)}


def _watched(take: Callable[[], dict[str, float]]) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Take a turn, and return its times and the backends that it entered, which takes time itself."""
    times: dict[str, float] = {}
    routes = executed_routes(lambda: times.update(take()))
    return times, {"routes": sorted(routes)}


def _measure(module: nn.Module, inputs: tuple[torch.Tensor, ...], device: str) -> dict[str, float]:
    """Run forward and backward once and return `forward_ms` and `backward_ms`."""
    clock = PhaseClock(device)
    if isinstance(module, TinyLM | OwnModel):
        training.backward_step(module, *inputs, mark=clock.mark)
    else:
        x, cotangent = inputs
        output = module(x)
        clock.mark("forward")
        output.backward(cotangent)
        clock.mark("backward")
        x.grad = None
    module.zero_grad(set_to_none=True)  # one contestant's gradients must not stay while another one runs
    return clock.phases_ms
