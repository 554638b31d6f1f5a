"""What a case leaves for people who look into its memory, with `memory_snapshot=True`.

- `memory_snapshot.pickle`, every allocation of one step, for PyTorch's memory viewer;
- `trace.json.gz`, two steps as torch's profiler sees them, for Perfetto;
- as a fact, what is allocated from one allocation of that step to the next, for the chart in the report.

It is a case of its own that no gate reads: recording allocations cannot touch the peak that is judged.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import profile

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.subject import training
from nsa_lib.subject.attention.tables import own_tables
from nsa_lib.worker import data
from nsa_lib.worker.allocation_curve import Levels, allocation_curve
from nsa_lib.worker.building import built
from nsa_lib.worker.devices import DEVICES
from nsa_lib.worker.storages import StorageTracker

SNAPSHOT, TRACE = "memory_snapshot.pickle", "trace.json.gz"

RECORDED_STEP = 3
"""The step whose allocations are recorded: the first makes the optimizer's state, the second finds it."""

MOST_EVENTS = 1_000_000
"""Allocations and frees that torch keeps; a step has some ten thousand."""


def run_snapshot(case: CaseConfig, heartbeat: Heartbeat) -> Iterator[Mapping[str, object]]:
    """Train until a step allocates as the one before, record the next one, and trace those after it."""
    model = built(case)
    optimizer, device = training.make_optimizer(model, case.lr), DEVICES[case.device]
    meter, record = device.meter(case.alloc_conf, case.budget_mib), RECORDS[case.device]()
    batches = data.batches(case)

    def mark(phase: str) -> None:
        meter.mark(phase)
        record.end(phase)

    def take(step: int) -> None:
        began, tokens = time.perf_counter(), next(batches).to(case.device)
        meter.begin_step()
        if step == RECORDED_STEP:
            record.begin()
        result = training.train_step(model, optimizer, tokens, mark=mark, loss_chunk=case.loss_chunk)
        figures = {"loss": result.loss.item(), "grad_norm": result.grad_norm.item()}  # waits for the device
        figures["step_ms"] = 1000 * (time.perf_counter() - began)
        heartbeat.beat("warmup" if step <= case.warmup_steps else "step", step, **figures, **meter.read())

    with own_tables(), meter, record:
        for tracked in (meter, record):
            tracked.track(model)
        heartbeat.beat("warmup")
        for step in range(1, RECORDED_STEP + 1):
            take(step)
        levels = record.save(heartbeat.folder / SNAPSHOT)
        yield {"allocations": {"step": RECORDED_STEP, "phases": allocation_curve(levels)}}
        with profile(activities=device.activities, record_shapes=True, profile_memory=True) as profiler:
            for step in range(RECORDED_STEP + 1, case.steps + 1):
                take(step)
    profiler.export_chrome_trace(str(heartbeat.folder / TRACE))


class AllocationRecord(Protocol):
    """What records the allocations of one step on a device. It is a context manager around all steps."""

    def track(self, *objects: object) -> None:
        """Count what existed before."""

    def begin(self) -> None:
        """Begin to record."""

    def end(self, phase: str) -> None:
        """End a phase of a step, recorded or not."""

    def save(self, path: Path) -> Levels:
        """Stop, write what was recorded for PyTorch's memory viewer, and return the levels by phase."""


class CpuRecord(StorageTracker):
    """Record the live storages of the CPU, in the form that torch has for its CUDA allocator."""

    def __init__(self):
        super().__init__("cpu")
        self._bytes = self._next_address = 0
        self._alive: dict[int, dict[str, object]] = {}
        self._operator = ""
        self._recording = False
        self._events: list[dict[str, object]] = []
        self._levels: dict[str, list[int]] = {}
        self._level: list[int] = []

    def begin(self) -> None:
        """Begin with what is alive, as if it were allocated now: the viewer knows no other memory."""
        self._recording, self._events, self._level = True, list(self._alive.values()), [self._bytes]

    def end(self, phase: str) -> None:
        if self._recording:
            self._levels[phase], self._level = self._level, [self._bytes]
            self._recording = phase != training.PHASES[-1]

    def save(self, path: Path) -> Levels:
        path.write_bytes(pickle.dumps({"segments": [], "device_traces": [self._events]}))
        return self._levels

    def born(self, nbytes: int) -> int:
        address = self._next_address
        self._next_address += nbytes
        self._bytes += nbytes
        self._alive[address] = self._note("alloc", address, nbytes)
        return address

    def died(self, kept: int) -> None:
        nbytes = self._alive.pop(kept)["size"]
        self._bytes -= nbytes
        self._note("free_completed", kept, nbytes)

    def _note(self, action: str, address: int, nbytes: int) -> dict[str, object]:
        frames = [{"name": self._operator, "filename": "", "line": 0}]
        now_us = time.time_ns() // 1000
        event = {"action": action, "addr": address, "size": nbytes, "stream": 0, "time_us": now_us, "frames": frames}
        if self._recording:
            self._events.append(event)
            self._level.append(self._bytes)
        return event

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._operator = func.name()
        return super().__torch_dispatch__(func, types, args, kwargs)


class CudaRecord:
    """Let torch's CUDA allocator record, with the stack of every allocation."""

    def __init__(self):
        self._began_bytes = 0
        self._ends_us: dict[str, int] = {}

    def __enter__(self) -> CudaRecord:
        return self

    def __exit__(self, *exception: object) -> None:
        torch.cuda.memory._record_memory_history(enabled=None)

    def track(self, *objects: object) -> None:
        """Do nothing: the allocator knows what existed before."""

    def begin(self) -> None:
        self._began_bytes = torch.cuda.memory_allocated()
        # Private by name, but documented: "Understanding CUDA Memory Usage".
        torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS)

    def end(self, phase: str) -> None:
        self._ends_us[phase] = time.time_ns() // 1000

    def save(self, path: Path) -> Levels:
        torch.cuda.memory._dump_snapshot(str(path))
        events = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        torch.cuda.memory._record_memory_history(enabled=None)
        return levels_of(events, self._began_bytes, self._ends_us)


def levels_of(events: list[Mapping], began_bytes: int, ends_us: Mapping[str, int]) -> Levels:
    """Return what is allocated after each event of a trace of torch's allocator, by phase.

    Args:
        events: in order, with `action`, `size` in bytes and `time_us`.
        began_bytes: allocated before the first of them.
        ends_us: when each phase ended, in order. What comes after the last one is left out.
    """
    levels, held, phases = {}, began_bytes, list(ends_us)
    place, level = 0, [began_bytes]
    for event in events:
        while place < len(phases) and event["time_us"] > ends_us[phases[place]]:
            levels[phases[place]], level = level, [held]
            place += 1
        sign = {"alloc": 1, "free_completed": -1}.get(event["action"], 0)
        if sign and place < len(phases):
            held += sign * event["size"]
            level.append(held)
    for phase in phases[place:]:
        levels[phase], level = level, [held]
    return levels


RECORDS: dict[str, type[AllocationRecord]] = {"cpu": CpuRecord, "cuda": CudaRecord}
"""What records, by device."""
