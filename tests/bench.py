"""What the promises of speed and cost rest on: `make bench`.

Everything that is compared runs in one process, interleaved A B A B, because machines are shared and drift; ratios are
of medians. On a GPU the sizes are the checklist's, elsewhere the laptop's. The figures go to reports/bench-<UTC>.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from nsa_lib.contract.backends import runnable_backends
from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.runs import environment
from nsa_lib.runs.provenance import provenance
from nsa_lib.runs.training_case import training_case
from nsa_lib.subject import training
from nsa_lib.subject.model import TinyLM
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.worker import data
from nsa_lib.worker.allocator import AllocatorSimulation
from nsa_lib.worker.devices import DEVICES
from tests.made import resolved

ROUNDS = 7


def main() -> None:
    """Measure, print a table, and keep the figures."""
    facts = environment.torch_facts()
    profile = "checklist" if facts["cuda_usable"] else "laptop"
    if profile == "laptop":
        torch.set_num_threads(1)  # as a case does
    values = resolved("smoke", {}, profile=profile)
    case, backends = training_case(values), runnable_backends(lambda name: values[name].value, facts)
    figures = {
        "profile": profile,
        **bench_steps(case, backends),
        **bench_meter(case),
        **bench_heartbeat(case),
        **bench_allocator(),
        "environment": {**facts, **environment.machine_facts(), **provenance(QUESTIONS)},
    }
    for name, value in figures.items():
        if not isinstance(value, dict):
            print(f"{name:44} {value if isinstance(value, str) else f'{value:,.4g}'}")
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path = environment.PROJECT / "reports" / f"bench-{stamp}.json"
    path.write_text(json.dumps(figures, indent=1))
    print(path)


class Stepper:
    """A model in training, one step a call; returns the step's seconds."""

    def __init__(self, case: CaseConfig):
        torch.manual_seed(case.seed)
        self.model = TinyLM(case.model, grad_checkpointing=case.grad_checkpointing)
        self.model.to(getattr(torch, case.dtype)).to(case.device)
        if case.compile:
            self.model.compile_blocks()
        self.optimizer = training.make_optimizer(self.model, case.lr)
        self.tokens = next(data.batches(case)).to(case.device)

    def __call__(self, mark: Callable[[str], None] = lambda phase: None) -> float:
        began = time.perf_counter()
        training.train_step(self.model, self.optimizer, self.tokens, mark=mark).loss.item()
        return time.perf_counter() - began


def interleaved(runs: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Return the median seconds of each run, after a warm-up round, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(ROUNDS + 1):
        for name, run in runs.items():
            taken = run()
            if round_:
                seconds[name].append(taken)
    return {name: median(values) for name, values in seconds.items()}


def bench_steps(case: CaseConfig, backends: Sequence[str]) -> dict[str, float]:
    """Measure a train step with each backend and with dense attention, on a GPU compiled too."""
    dense = replace(case, model=replace(case.model, attention="dense"))
    cases = {name: replace(case, model=replace(case.model, backend=name)) for name in backends} | {"dense": dense}
    if case.device == "cuda":
        cases |= {"masked_compiled": replace(case, compile=True), "dense_compiled": replace(dense, compile=True)}
    taken = interleaved({name: Stepper(case) for name, case in cases.items()})
    tokens = case.batch * case.seq_len
    return (
        {f"step_{name}_ms": 1000 * s for name, s in taken.items()}
        | {f"step_{name}_tokens_per_s": tokens / s for name, s in taken.items()}
        | {f"step_{name}_over_dense": s / taken["dense"] for name, s in taken.items() if name != "dense"}
    )


def bench_meter(case: CaseConfig) -> dict[str, float]:
    """Measure what watching a step's memory costs, over the same step unwatched."""
    plain, watched = Stepper(case), Stepper(case)
    meter = DEVICES[case.device].meter(case.alloc_conf)

    def step() -> float:
        with meter:
            began = time.perf_counter()
            meter.begin_step()
            watched(meter.mark)
            meter.read()
            return time.perf_counter() - began

    meter.track(watched.model)
    taken = interleaved({"plain": plain, "watched": step})
    return {"metered_step_over_plain": taken["watched"] / taken["plain"]}


def bench_heartbeat(case: CaseConfig) -> dict[str, float]:
    """Measure all that watching adds to a step: marking its phases, reading the counters, writing the line."""
    step = Stepper(case)
    with TemporaryDirectory() as folder, DEVICES[case.device].meter(case.alloc_conf) as meter:
        heartbeat = Heartbeat(Path(folder) / "heartbeat.jsonl")
        step_s = min(step() for _ in range(3))
        beats = []
        for index in range(200):
            began = time.perf_counter()
            meter.begin_step()
            for phase in training.PHASES:
                meter.mark(phase)
            heartbeat.beat("step", index, loss=1.0, grad_norm=1.0, step_ms=1.0, tokens_per_s=1.0, **meter.read())
            beats.append(time.perf_counter() - began)
        heartbeat.close()
    return {"heartbeat_us": 1e6 * median(beats), "heartbeat_percent_of_step": 100 * median(beats) / step_s}


def bench_allocator() -> dict[str, float]:
    """Measure the simulated allocator, for one allocation and its release."""
    simulation, sizes = AllocatorSimulation("expandable_segments:True"), [2**20 * (1 + i % 7) for i in range(2000)]
    began = time.perf_counter()
    for block in [simulation.allocate(size) for size in sizes]:
        simulation.free(block)
    return {"simulated_allocation_us": 1e6 * (time.perf_counter() - began) / len(sizes)}


if __name__ == "__main__":
    main()
