"""Where a process can compute: the GPUs that it sees, or the cores of the CPU. The first is where a case runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CORES = sorted(os.sched_getaffinity(0))
"""Those that the process may use, as it was started."""


def places(device: str) -> list[str]:
    """Return the places of a kind of device, the one where this process began first."""
    if device == "cpu":
        return [f"core {core}" for core in CORES]
    gpus = range(torch.cuda.device_count())
    return [f"cuda:{gpu}" for gpu in sorted(gpus, key=lambda gpu: gpu != torch.cuda.current_device())]


def here(device: str) -> str:
    """Return where this process computes now; of a CPU the first of the cores that it may use."""
    if device == "cpu":
        return f"core {min(os.sched_getaffinity(0))}"
    return f"cuda:{torch.cuda.current_device()}"


@contextmanager
def at(place: str) -> Iterator[None]:
    """Compute at a place inside."""
    if place.startswith("core "):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {int(place.removeprefix("core "))})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)
    else:
        with torch.cuda.device(place):
            yield
