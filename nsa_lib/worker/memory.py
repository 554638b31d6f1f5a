"""Measure a case's memory: from torch's counters on CUDA, from a tracker of live storages on the CPU.

Both meters report the same fields, in MiB (2**20 bytes). On the CPU, allocated is the size of all live tensor storages,
in units of 512 B as on CUDA, and reserved is what the CUDA caching allocator would have reserved for the same
allocations: it is simulated, and the same in two runs.

Not covered: memory that torch's allocator does not hand out (context, libraries, NumPy). On the CPU also: compiled
code, scratch inside one operator, sparse tensors, and the new size of a storage that an operator resizes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from unittest.mock import patch

import torch

from nsa_lib.contract.allocator import MIB, UNBOUNDED
from nsa_lib.worker.allocator import AllocatorSimulation, Block
from nsa_lib.worker.process import started_with
from nsa_lib.worker.storages import StorageTracker

RESETS = ("_cuda_resetPeakMemoryStats", "_accelerator_resetPeakStats")
"""What resets the peaks in the end, by whatever function of torch it is asked for. Private, but there is no other."""


class _StepPeaks:
    """The peaks of one step, over all of it and by phase."""

    def __init__(self):
        self.begin()

    def begin(self) -> None:
        self._of_step = self._of_phase = (0.0, 0.0)
        self._by_phase: dict[str, float] = {}

    def note(self, alloc_mib: float, reserved_mib: float, phase: str | None = None) -> None:
        """Note peaks, of the end of a phase if one is named."""
        self._of_step, self._of_phase = (
            (max(before[0], alloc_mib), max(before[1], reserved_mib)) for before in (self._of_step, self._of_phase)
        )
        if phase is not None:
            self._by_phase |= _peaks(f"{phase}_", *self._of_phase)
            self._of_phase = (0.0, 0.0)

    def fields(self) -> dict[str, float]:
        return {**_peaks("", *self._of_step), **self._by_phase}


def _peaks(of: str, alloc_mib: float, reserved_mib: float) -> dict[str, float]:
    return {f"peak_alloc_{of}mib": alloc_mib, f"peak_reserved_{of}mib": reserved_mib}


class CudaMeter:
    """Read the counters of torch's CUDA caching allocator.

    There is one set of peak counters, which whoever runs in a step may reset too, as code that prints its own peak
    does. While the meter is entered, what they say is noted first.
    """

    operator_counts = None
    """None: on CUDA the profiler counts operators, in a case of its own."""

    def __init__(self):
        self._peaks = _StepPeaks()
        self._patches = ExitStack()
        self._is_resetting = False

    def __enter__(self) -> CudaMeter:
        for name in RESETS:
            if hasattr(torch._C, name):
                noting = partial(self._noting, getattr(torch._C, name))
                self._patches.enter_context(patch.object(torch._C, name, noting))
        return self

    def __exit__(self, *exception) -> None:
        self._patches.close()

    def _noting(self, reset: Callable[..., None], *arguments: object) -> None:
        if not self._is_resetting:
            self._note(None)
        reset(*arguments)

    def _reset(self) -> None:
        """Reset the peaks, which are noted already: to read the counters twice would cost a step its time."""
        self._is_resetting = True
        torch.cuda.reset_peak_memory_stats()
        self._is_resetting = False

    def track(self, *objects: object) -> None:
        """Do nothing: the allocator knows what existed before."""

    def begin_step(self) -> None:
        """Start the peaks of a new step from what is held now."""
        self._peaks.begin()
        self._reset()

    def mark(self, phase: str) -> None:
        """End a phase of the step and note its peaks."""
        self._note(phase)
        self._reset()

    def replayed(self, above_mib: float) -> None:
        """Note that a CUDA graph ran, which uses so much beside what is held, and whose allocations nobody counts."""
        held_mib = torch.cuda.memory_allocated() / MIB
        self._peaks.note(held_mib + above_mib, torch.cuda.memory_reserved() / MIB)

    def read(self) -> dict[str, float | int | None]:
        """Return the figures of the step; retries, OOMs and device allocations count from the process's start."""
        stats = self._note(None)
        return {
            "alloc_mib": _mib(stats, "allocated_bytes", "current"),
            "reserved_mib": _mib(stats, "reserved_bytes", "current"),
            "active_mib": _mib(stats, "active_bytes", "current"),
            **self._peaks.fields(),
            "alloc_retries": stats["num_alloc_retries"],
            "ooms": stats["num_ooms"],
            "device_allocs": stats["num_device_alloc"],
            "ops": None,
        }

    def allocator(self) -> dict[str, object]:
        """Return the setting that the allocator obeys: as text, and the options that torch tells apart.

        What torch does not tell is left out. Only its own allocator tells its options, not `cudaMallocAsync`.
        """
        if torch.cuda.memory.get_allocator_backend() != "native":
            return _setting_that_torch_read()
        # Private, but only there torch tells which options the allocator obeys.
        told = torch.cuda.memory._snapshot()["allocator_settings"]
        found = {"setting": told["PYTORCH_CUDA_ALLOC_CONF"]} if "PYTORCH_CUDA_ALLOC_CONF" in told else {}
        if "max_split_size" in told:
            found["max_split_mib"] = told["max_split_size"] // MIB if 0 <= told["max_split_size"] < UNBOUNDED else None
        return found | {name: told[name] for name in ("expandable_segments",) if name in told}

    def _note(self, phase: str | None) -> Mapping:
        # The nested form: flattening the whole table takes longer than reading it.
        stats = torch.cuda.memory_stats_as_nested_dict()
        self._peaks.note(_mib(stats, "allocated_bytes", "peak"), _mib(stats, "reserved_bytes", "peak"), phase)
        return stats


class CpuMeter(StorageTracker):
    """Measure the live storages of the CPU, and count the operators."""

    def __init__(self, alloc_conf: str, *, capacity_mib: float | None = None):
        super().__init__("cpu")
        self._allocator = AllocatorSimulation(alloc_conf, capacity_mib)
        self._bytes = self._peak_bytes = 0
        self._peaks = _StepPeaks()
        self.operator_counts: Counter[str] = Counter()
        """Calls of each operator since `begin_step`."""

    def begin_step(self) -> None:
        """Start the peaks and operator counts of a new step from what is held now."""
        self.operator_counts = Counter()
        self._peaks.begin()
        self._reset_peaks()

    def mark(self, phase: str) -> None:
        """End a phase of the step and note its peaks."""
        self._note(phase)
        self._reset_peaks()

    def read(self) -> dict[str, float | int | None]:
        """Return the figures of the step; retries and device allocations count from the meter's start."""
        self._note(None)
        return {
            "alloc_mib": self._bytes / MIB,
            "reserved_mib": self._allocator.reserved_mib,
            "active_mib": self._allocator.active_mib,
            **self._peaks.fields(),
            "alloc_retries": self._allocator.retries,
            "ooms": 0,
            "device_allocs": self._allocator.device_allocs,
            "ops": self.operator_counts.total(),
        }

    def allocator(self) -> dict[str, object]:
        """Return the setting that the process runs under, as text, and the options that the simulation obeys."""
        settings = self._allocator.settings
        split = settings.max_split_bytes
        return {
            # torch 2.11 and older tell none without CUDA: then it is what this process was started with.
            "setting": started_with("PYTORCH_ALLOC_CONF"),
            **_setting_that_torch_read(),
            "expandable_segments": settings.expandable_segments,
            "max_split_mib": None if split == UNBOUNDED else split // MIB,
        }

    def born(self, nbytes: int) -> tuple[int, Block]:
        block = self._allocator.allocate(nbytes)
        self._bytes += nbytes
        self._peak_bytes = max(self._peak_bytes, self._bytes)
        return nbytes, block

    def died(self, kept: tuple[int, Block]) -> None:
        nbytes, block = kept
        self._bytes -= nbytes
        self._allocator.free(block)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if result is NotImplemented:
            return result
        self.operator_counts[func.name()] += 1
        return result

    def _reset_peaks(self) -> None:
        self._peak_bytes = self._bytes
        self._allocator.reset_peak()

    def _note(self, phase: str | None) -> None:
        self._peaks.note(self._peak_bytes / MIB, self._allocator.reserved_peak_mib, phase)


def _setting_that_torch_read() -> dict[str, object]:
    """Return the `setting`, or nothing from a torch that does not tell it."""
    tell = getattr(torch._C, "_accelerator_getAllocatorSettings", None)
    return {} if tell is None else {"setting": tell()}


def _mib(stats: Mapping, counter: str, figure: str) -> float:
    return stats[counter]["all"][figure] / MIB
