"""The kinds of device that a case can run on, and all that a worker asks of them.

A kind that is not in DEVICES is an error, never taken for another one.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.profiler import ProfilerActivity

from nsa_lib.contract.allocator import MIB
from nsa_lib.worker.memory import CpuMeter, CudaMeter
from nsa_lib.worker.profiling import OperatorWindows, TrackedWindows


class Device(Protocol):
    """One kind of device, as the loop of a case sees it."""

    activities: tuple[ProfilerActivity, ...]
    """What the profiler records."""

    def why_missing(self) -> str | None:
        """Return in one line why this machine has none, or None if it has one."""

    def prepare(self, budget_mib: float | None) -> None:
        """Make the process ready for a case on a device with `budget_mib` of memory, or on all of it."""

    def meter(self, alloc_conf: str, budget_mib: float | None = None) -> CudaMeter | CpuMeter:
        """Return a meter of the device's memory. Raises ConfigError for a setting that it cannot follow."""

    def operator_windows(self, *, steps: int) -> OperatorWindows | TrackedWindows:
        """Return what counts the operators of a case of so many steps."""

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""

    def empty_cache(self) -> None:
        """Give cached memory back to the device."""

    def total_mib(self, budget_mib: float | None) -> float | None:
        """Return the memory of the device, or of the one that `budget_mib` emulates; None if it has no end."""

    def settings(self) -> dict[str, object]:
        """Return the settings in force, as torch tells them."""


class Cuda:
    """The first CUDA device. The host has one thread for what is done there: no others that spin beside each call."""

    activities = (ProfilerActivity.CPU, ProfilerActivity.CUDA)

    def why_missing(self) -> str | None:
        return None if torch.cuda.is_available() else "torch finds no CUDA device"

    def prepare(self, budget_mib: float | None) -> None:
        """Let torch's allocator reserve no more than `budget_mib`, as on a device of that size.

        What is outside the allocator (context, libraries, other processes) does not count, and speed stays the
        device's. Raises ValueError if the device is smaller.
        """
        torch.set_num_threads(1)
        if budget_mib is not None:
            torch.cuda.set_per_process_memory_fraction(budget_mib / self._own_mib())

    def meter(self, alloc_conf: str, budget_mib: float | None = None) -> CudaMeter:
        """Return the meter of torch's allocator, which knows its setting and its cap."""
        return CudaMeter()

    def operator_windows(self, *, steps: int) -> OperatorWindows:
        return OperatorWindows(steps=steps, activities=self.activities)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def total_mib(self, budget_mib: float | None) -> float:
        return self._own_mib() if budget_mib is None else budget_mib

    def settings(self) -> dict[str, object]:
        return {"allocator": CudaMeter().allocator()}

    def _own_mib(self) -> float:
        return torch.cuda.get_device_properties(0).total_memory / MIB


class Cpu:
    """The CPU, whose memory is measured as if a CUDA allocator handed it out."""

    activities = (ProfilerActivity.CPU,)

    def why_missing(self) -> None:
        return None

    def prepare(self, budget_mib: float | None) -> None:
        """Use one thread: the same sums on every machine, and no threads that spin where cores are shared."""
        torch.set_num_threads(1)

    def meter(self, alloc_conf: str, budget_mib: float | None = None) -> CpuMeter:
        """Return the tracker of live storages, on a simulated device of `budget_mib`."""
        return CpuMeter(alloc_conf, capacity_mib=budget_mib)

    def operator_windows(self, *, steps: int) -> TrackedWindows:
        return TrackedWindows(steps=steps)

    def synchronize(self) -> None:
        """Do nothing: a call has ended when it returns."""

    def empty_cache(self) -> None:
        """Do nothing: each case simulates a cache of its own."""

    def total_mib(self, budget_mib: float | None) -> float | None:
        return budget_mib

    def settings(self) -> dict[str, object]:
        return {}


DEVICES: dict[str, Device] = {"cpu": Cpu(), "cuda": Cuda()}
"""The devices by the names of `contract.case.DEVICES`."""
