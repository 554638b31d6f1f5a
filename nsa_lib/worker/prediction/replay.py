"""From a trace of allocations to memory: peaks and what they consist of, under one allocator setting. In MiB."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nsa_lib.contract.allocator import MIB
from nsa_lib.worker.allocator import AllocatorSimulation
from nsa_lib.worker.prediction.record import Trace

TERMS = (
    "parameters", "gradients", "optimizer", "activations", "loss", "communication", "temporaries", "tables",
    "workspace",
)  # fmt: skip
"""What memory consists of. `activations`: what forward keeps for backward. `loss`: logits and their gradients.
`communication`: FSDP2's gathered parameters and what it reduces; DDP's buckets are the gradients.
`temporaries`: all that comes and goes, with checkpointing the layer that is computed again. `tables`: constants of the
attention, and the tokens. `workspace`: cuBLAS's."""


@dataclass(frozen=True)
class Peak:
    """The highest memory of one phase."""

    alloc_mib: float
    terms_mib: dict[str, float]
    """What was held at that moment; together the terms are `alloc_mib`."""


@dataclass(frozen=True)
class Replayed:
    """The memory of a trace under one allocator setting."""

    phases: dict[str, Peak]
    """The peak of each phase, over all steps."""
    held_mib: float
    """Allocated between two steps."""
    held_terms_mib: dict[str, float]
    peak_reserved_mib: float
    levels: dict[str, list[int]]
    """Bytes allocated at the begin of each phase of the last step, and after each allocation and free in it."""

    @property
    def peak(self) -> Peak:
        """The highest of the phases' peaks."""
        return max(self.phases.values(), key=lambda peak: peak.alloc_mib)


def replay(trace: Trace, alloc_conf: str, *, capacity_mib: float | None = None) -> Replayed:
    """Return the memory of a trace under an allocator setting, on a device of `capacity_mib`, or on an endless one.

    On CUDA what counts as allocated is the block that a request gets, on the CPU the request.

    Raises:
        ConfigError: for a setting that cannot be simulated.
        MemoryError: if the device is full.
    """
    allocator, blocks = AllocatorSimulation(alloc_conf, capacity_mib), {}
    held: Counter[str] = Counter()
    allocated = peak = 0
    at_peak: dict[str, int] = {}
    phases: dict[str, Peak] = {}
    levels = _Levels()
    for kind, what, nbytes in trace.events:
        if kind == "+":
            block = allocator.allocate(nbytes)
            size = block.size if trace.device == "cuda" else nbytes
            blocks[what] = block, size
            allocated += size
            held[trace.terms[what]] += size
            if allocated > peak:
                peak, at_peak = allocated, dict(held)
        elif kind == "-":
            block, size = blocks.pop(what)
            allocator.free(block)
            allocated -= size
            held[trace.terms[what]] -= size
        elif kind == "empty":
            allocator.empty_cache()
            allocator.reset_peak()
            peak, at_peak = allocated, dict(held)
        else:
            if what != "step" and peak / MIB > getattr(phases.get(what), "alloc_mib", 0.0):
                phases[what] = Peak(peak / MIB, _mib(at_peak))
            peak, at_peak = allocated, dict(held)
        levels.note(kind, what, allocated)
    return Replayed(phases, allocated / MIB, _mib(held), allocator.reserved_peak_mib, levels.by_phase)


class _Levels:
    """What is allocated after each allocation and free of a step, by phase; of several steps the last one stays."""

    def __init__(self):
        self.by_phase: dict[str, list[int]] = {}
        self._level = [0]

    def note(self, kind: str, what: int | str, allocated: int) -> None:
        if kind == "phase":
            if what != "step":
                self.by_phase[str(what)] = self._level
            self._level = [allocated]
        elif kind != "empty":
            self._level.append(allocated)


def _mib(terms: dict[str, int]) -> dict[str, float]:
    return {term: terms.get(term, 0) / MIB for term in TERMS}
