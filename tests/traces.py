"""Synthetic memory traces with a stated truth, to measure how often a trend rule is wrong.

A trace has 100 steps (`long leak` 1,000), 10 of them warm-up, and Gaussian noise, a fraction of the base. What `growth`
means, and what is true of the trace, stands at each kind. Where the rise is steady, `growth` is what the trace without
its noise and teeth gains after the warm-up.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

STEPS, WARMUP = 100, 10


def _flat(growth: float, rng: random.Random) -> Callable[[int], float]:
    """No growth and, alone among the kinds, no noise. Never FAIL."""
    return lambda step: 0.0


def _noise(growth: float, rng: random.Random) -> Callable[[int], float]:
    """No growth. Never FAIL."""
    return lambda step: 0.0


def _warmup_ramp(growth: float, rng: random.Random) -> Callable[[int], float]:
    """Rises by `growth` while warming up, then flat. Never FAIL."""
    return lambda step: growth * min(step / WARMUP, 1)


def _sawtooth(growth: float, rng: random.Random) -> Callable[[int], float]:
    """Teeth of height `growth`, 4 to 30 steps long, in any phase. Never FAIL."""
    period, phase = rng.randint(4, 30), rng.random()
    return lambda step: growth * ((step / period + phase) % 1)


def _single_step(growth: float, rng: random.Random) -> Callable[[int], float]:
    """One step up by `growth`, anywhere. Never FAIL; WARN past 10 %."""
    at = rng.randint(12, 98)
    return lambda step: growth * (step >= at)


def _saturating(growth: float, rng: random.Random) -> Callable[[int], float]:
    """A rise that dies out with a time constant of 15 to 30 steps. FAIL past 10 %."""
    decay = rng.uniform(15, 30)
    scale = growth / (1 - math.exp(-(STEPS - WARMUP - 1) / decay))
    return lambda step: scale * (1 - math.exp(-(step - WARMUP - 1) / decay))


def _slow_leak(growth: float, rng: random.Random) -> Callable[[int], float]:
    """A constant rise over the whole run. FAIL past 10 %."""
    return lambda step: growth * (step - WARMUP - 1) / (STEPS - WARMUP - 1)


def _toothed_leak(growth: float, rng: random.Random) -> Callable[[int], float]:
    """A constant rise over the whole run under teeth of 5 %, 2 to 10 steps long. FAIL past 10 %."""
    leak, period, phase = _slow_leak(growth, rng), rng.randint(2, 10), rng.random()
    return lambda step: leak(step) + 0.05 * ((step / period + phase) % 1)


def _staircase(growth: float, rng: random.Random) -> Callable[[int], float]:
    """4 to 8 equal stairs in any 50 steps, for 50 steps, in any phase. FAIL past 10 %."""
    stairs, start = rng.randint(4, 8), rng.uniform(11, 50)
    return lambda step: growth / stairs * min(max(round((step - start) / 50 * stairs), 0), stairs)


def _early_leak(growth: float, rng: random.Random) -> Callable[[int], float]:
    """Rises from the end of the warm-up for 30 to 50 steps, then flat. FAIL past 10 %."""
    duration = rng.randint(30, 50)
    return lambda step: growth * min(max(step - WARMUP - 1, 0) / duration, 1)


def _leak_from(start: int) -> Callable[[float, random.Random], Callable[[int], float]]:
    """A constant rise from a step to the end of the run. FAIL past 10 %."""
    return lambda growth, rng: lambda step: growth * max(step - start, 0) / (STEPS - start)


def _long_leak(growth: float, rng: random.Random) -> Callable[[int], float]:
    """A constant rise over 1,000 steps, of which no 50 show much. FAIL past 10 % in all."""
    return lambda step: growth * (step - WARMUP - 1) / (1000 - WARMUP - 1)


STABLE = {
    "flat": _flat,
    "noise": _noise,
    "warm-up ramp": _warmup_ramp,
    "sawtooth": _sawtooth,
    "single step": _single_step,
}
"""Kinds that must never FAIL, whatever their size."""

RISING = {
    "saturating": _saturating,
    "slow leak": _slow_leak,
    "toothed leak": _toothed_leak,
    "staircase": _staircase,
    "early leak": _early_leak,
    "leak from step 50": _leak_from(50),
    "leak from step 75": _leak_from(75),
    "long leak": _long_leak,
}
"""Kinds that must FAIL when they grow by more than 10 %. A leak that begins late must too, if it has gained as much by
the last step; with less it is a WARN."""


def trace(
    kind: str, *, growth: float, base_mib: float, seed: int, noise: float = 0.003
) -> tuple[list[int], list[float]]:
    """Return the steps and values in MiB of one trace."""
    rng = random.Random(f"{kind} {growth} {base_mib} {seed}")
    shape = (STABLE | RISING)[kind](growth, rng)
    noise = 0.0 if kind == "flat" else noise
    steps = list(range(1, (1000 if kind == "long leak" else STEPS) + 1))
    return steps, [base_mib * (1 + shape(step) + rng.gauss(0, noise)) for step in steps]
