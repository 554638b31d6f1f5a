"""Hold a meter against what is known: memory of known sizes, and calls of an operator whose number is known.

A meter that is blind in one phase, or to some sizes, tells figures that look like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from nsa_lib.subject import training
from nsa_lib.worker.memory import CpuMeter, CudaMeter

METER_CHECK = {0.5: 2**19, 1.0: 2**20, 2.0: 2**21, 4.0: 2**22, 8.0: 2**23, 16.0: 2**24}
"""What is held to check a meter: MiB, and as many bytes in figures, so that no constant of ours is on both sides."""

CALLS_CHECK = 100
"""Calls of an operator that a meter must count, in each phase."""


def meter_check(meter: CudaMeter | CpuMeter, device: str, *, is_bounded: bool = False) -> dict[str, float]:
    """Hold something of a known size for a while, as each phase does, and return what the meter says of it.

    Where memory `is_bounded`, as on an emulated device, the smallest size alone: a run may have left no room for more.

    Returns:
        `held_mib`; `read_mib`: what its peaks, of the step and of that phase, rise by. Where they are off the most, of
        the sizes in METER_CHECK. `reserved_mib`: the peak of what is reserved meanwhile. Of a meter that counts
        operators also `calls`, and how many of them it `counted` in the phase where it is off the most.
    """
    sizes = [min(METER_CHECK)] if is_bounded else METER_CHECK
    found = [(held_mib, read_mib) for held_mib in sizes for read_mib in _rises(meter, device, held_mib)]
    held_mib, read_mib = max(found, key=lambda pair: abs(pair[1] / pair[0] - 1))
    told = {"held_mib": held_mib, "read_mib": read_mib, "reserved_mib": meter.read()["peak_reserved_mib"]}
    if meter.operator_counts is None:
        return told
    counts = [_counted_calls(meter, device, phase) for phase in training.PHASES]
    return told | {"calls": CALLS_CHECK, "counted": max(counts, key=lambda count: abs(count - CALLS_CHECK))}


def _rises(meter: CudaMeter | CpuMeter, device: str, held_mib: float) -> Iterator[float]:
    def hold() -> None:
        torch.empty(METER_CHECK[held_mib], dtype=torch.uint8, device=device)

    for holding in training.PHASES:
        call = _as_called_in(holding, device)
        meter.begin_step()
        before_mib = meter.read()["peak_alloc_mib"]
        for phase in training.PHASES:
            if phase == holding:
                call(hold)
            meter.mark(phase)
        read = meter.read()
        yield from (read[name] - before_mib for name in ("peak_alloc_mib", f"peak_alloc_{holding}_mib"))


def _counted_calls(meter: CpuMeter, device: str, phase: str) -> int:
    """Return how many of CALLS_CHECK calls of an operator a meter counts when they are made as in a phase."""
    one = torch.ones((), device=device)

    def call_operators() -> None:
        for _ in range(CALLS_CHECK):
            torch.neg(one)

    call = _as_called_in(phase, device)
    meter.begin_step()
    call(call_operators)
    return meter.operator_counts["aten::neg"]


def _as_called_in(phase: str, device: str) -> Callable[[Callable[[], None]], None]:
    """Return what calls a function as a phase calls operators: the backward does it out of autograd's engine.

    Neither that nor the update records a graph, and a meter may see less there.
    """
    if phase == "forward":
        return lambda do: do()
    if phase == "optimizer":
        return torch.no_grad()(lambda do: do())
    leaf = torch.zeros((), device=device, requires_grad=True)
    passed, gradient = leaf.view_as(leaf), torch.ones((), device=device)

    def in_backward(do: Callable[[], None]) -> None:
        passed.register_hook(lambda _: do())
        torch.autograd.grad(passed, leaf, gradient)

    return in_backward
