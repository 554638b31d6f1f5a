"""Faults of the run: memory that is kept or lacking, a process that hangs or dies, heartbeats and files that fail."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch

from nsa_lib.contract.allocator import MIB
from nsa_lib.contract.case import TREND_WINDOW, WARMUP_STEPS, CaseConfig
from nsa_lib.contract.faults import FAULT_STEP, moment_of, strikes_at_call
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.faults.replacing import after_beats, replaced

FULL_BYTES = 8192
"""Size beyond which a file cannot grow, some fifteen heartbeats."""

BEYOND_BYTES = 2**60
"""More than any device has, and than any address space."""

SCRATCH_BYTES = 10 * MIB
"""CUDA's allocator gives a request of this size or more a segment of its own."""

SCRATCH_GROWTH_BYTES = 2 * MIB
"""Sizes of segments are multiples of this: a buffer that grows by it fits into no earlier one."""

SCRATCH_PERIOD = 2
"""Steps from one buffer to the next."""


def leak(case: CaseConfig, *, share: float) -> AbstractContextManager[None]:
    """Keep some memory each step: `share` of the peak over the window of the trend."""
    kept: list[torch.Tensor] = []
    step_bytes = 0

    def keep(step: int, figures: dict[str, float]) -> None:
        nonlocal step_bytes
        if step == WARMUP_STEPS:
            step_bytes = int(share * figures["peak_alloc_mib"] * MIB / TREND_WINDOW)
        if step_bytes:
            kept.append(torch.empty(step_bytes, dtype=torch.uint8, device=case.device))

    return after_beats(keep)


def pool_creep(case: CaseConfig) -> AbstractContextManager[None]:
    """Use a scratch buffer now and then, each time a larger one: without expandable segments no earlier one fits."""
    scratch_bytes = SCRATCH_BYTES

    def creep(step: int, figures: dict[str, float]) -> None:
        nonlocal scratch_bytes
        if step >= WARMUP_STEPS and step % SCRATCH_PERIOD == 0:
            torch.empty(scratch_bytes, dtype=torch.uint8, device=case.device)
            scratch_bytes += SCRATCH_GROWTH_BYTES

    return after_beats(creep)


def hang_forward(case: CaseConfig) -> AbstractContextManager[None]:
    """Sleep for ever in forward."""
    return _struck(case, partial(_for_ever, time.sleep))


def hang_gil(case: CaseConfig) -> AbstractContextManager[None]:
    """Sleep for ever in a C function that is called without releasing Python's lock."""
    return _struck(case, partial(_for_ever, ctypes.PyDLL(None).sleep))


def _for_ever(sleep: Callable[[int], object]) -> None:
    while True:  # a signal ends a sleep, not the hang
        sleep(3600)


def sigkill(case: CaseConfig) -> AbstractContextManager[None]:
    """Kill this process."""
    return _struck(case, partial(os.kill, os.getpid(), signal.SIGKILL))


def segfault(case: CaseConfig) -> AbstractContextManager[None]:
    """Read address 0."""
    return _struck(case, partial(ctypes.string_at, 0))


def oom(case: CaseConfig) -> AbstractContextManager[None]:
    """Ask the device for more memory than it has."""
    return _struck(case, partial(torch.empty, BEYOND_BYTES, dtype=torch.uint8, device=case.device))


def _struck(case: CaseConfig, strike: Callable[[], None]) -> AbstractContextManager[None]:
    """Call `strike` in the forward pass of FAULT_STEP and of each later step, or when the fault says."""
    name = "__init__" if moment_of(case.fault) == "build" else "hidden"
    original, calls, first = getattr(TinyLM, name), 0, strikes_at_call(case.fault)

    def struck(*arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls >= first:
            strike()
        return original(*arguments, **more)

    return replaced(struck, name, TinyLM)


def silent_heartbeat(case: CaseConfig) -> AbstractContextManager[None]:
    """Write no heartbeat from FAULT_STEP on, or none at all once it is planted, and train on."""
    original, at_once = Heartbeat.beat, bool(moment_of(case.fault))

    def beat(heartbeat: Heartbeat, phase: str, step: int | None = None, **figures: float) -> None:
        if not at_once and (step is None or step < FAULT_STEP):
            original(heartbeat, phase, step, **figures)

    return replaced(beat, "beat", Heartbeat)


def torn_heartbeat(case: CaseConfig) -> AbstractContextManager[None]:
    """Kill this process when half of a heartbeat is written: that of FAULT_STEP, or the next one."""
    original, write, at_once = Heartbeat.beat, os.write, bool(moment_of(case.fault))

    def torn(descriptor: int, line: bytes) -> None:
        write(descriptor, line[: len(line) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def beat(heartbeat: Heartbeat, phase: str, step: int | None = None, **figures: float) -> None:
        with replaced(torn, "write", os) if at_once or step == FAULT_STEP else nullcontext():
            original(heartbeat, phase, step, **figures)

    return replaced(beat, "beat", Heartbeat)


@contextmanager
def disk_full(case: CaseConfig) -> Iterator[None]:
    """Let no file of this process grow beyond FULL_BYTES."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
