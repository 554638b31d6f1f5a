"""Synthetic memory traces with a stated truth, to measure how often a trend rule is wrong.

A trace has 10 steps of warm-up and Gaussian noise, a fraction of the base. What `growth` means, and what is true of the
trace, stands at each kind. Where it rises, `growth` is what the trace without its noise and teeth gains in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

STEPS, WARMUP = 100, 10

Shape = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
"""From the steps after the warm-up (0, 1, ...), growth and chance to the level of each, 0 at the base."""


def _flat(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """No growth and, alone among the kinds, no noise."""
    return 0.0 * step


def _noise(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """No growth."""
    return 0.0 * step


def _falling(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """Falls by `growth` over the run."""
    return -_slow_leak(step, growth, rng)


def _warmup_ramp(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """Rises by `growth` while warming up, then flat."""
    return growth * np.minimum((step + WARMUP + 1) / WARMUP, 1)


def _spikes(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """One step in twenty is higher by up to `growth`."""
    return growth * rng.random(len(step)) * (rng.random(len(step)) < 0.05)


def _sawtooth(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """Teeth of height `growth`, 4 to 30 steps long, in any phase."""
    return growth * _teeth(step, rng, 4, 30)


def _teeth(step: np.ndarray, rng: np.random.Generator, shortest: int, longest: int) -> np.ndarray:
    return (step / rng.integers(shortest, longest + 1) + rng.random()) % 1


def _single_step(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """One step up by `growth`, anywhere."""
    return growth * (step >= rng.integers(2, len(step) - 2))


def _two_steps(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """Two steps up, by `growth` in all, anywhere."""
    return (_single_step(step, growth, rng) + _single_step(step, growth, rng)) / 2


def _slow_leak(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """A constant rise over the whole run."""
    return growth * step / step[-1]


def _leak(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """A constant rise over 50 steps or more, that begins anywhere and then stops."""
    start, steps = _part(step, rng)
    return growth * np.clip((step - start) / (steps - 1), 0, 1)


def _part(step: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Return where a part of the run begins, and its length: 50 steps up to the run's, short ones as often as long."""
    steps = round(math.exp(rng.uniform(math.log(50), math.log(len(step)))))
    return int(rng.integers(0, len(step) - steps + 1)), steps


def _early_leak(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """A constant rise over the first 50 steps after the warm-up, then flat."""
    return growth * np.minimum(step / 49, 1)


def _last(steps: int) -> Shape:
    """A constant rise over the last steps of the run."""
    return lambda step, growth, rng: growth * np.maximum(step - step[-1] + steps - 1, 0) / (steps - 1)


def _staircase(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """4 to 8 equal stairs in 50 steps, anywhere, in any phase."""
    stairs, start = rng.integers(4, 9), rng.uniform(0, len(step) - 50)
    return growth / stairs * np.clip(np.round((step - start) / 50 * stairs), 0, stairs)


def _flushed_leak(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """A leak as above, that falls by 10 to 20 % of its growth once to three times: the allocator gives some back."""
    start, steps = _part(step, rng)
    falls = growth * rng.uniform(0.1, 0.2, size=rng.integers(1, 4))
    level = (growth + falls.sum()) * np.clip((step - start) / (steps - 1), 0, 1)
    for fall in falls:
        level -= fall * (step >= start + rng.integers(5, steps - 5))
    return level


def _saturating(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """A rise that dies out with a time constant of 15 to 30 steps."""
    decay = rng.uniform(15, 30)
    return growth * (1 - np.exp(-step / decay)) / (1 - math.exp(-89 / decay))


def _toothed_leak(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """A constant rise over the whole run under teeth of 5 %, 2 to 10 steps long."""
    return _slow_leak(step, growth, rng) + 0.05 * (_teeth(step, rng, 2, 10) - 0.5)


def _climbing_teeth(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """Teeth of 5 to 15 %, 4 to 10 steps long, that climb by `growth` over the run."""
    return _slow_leak(step, growth, rng) + rng.uniform(0.05, 0.15) * (_teeth(step, rng, 4, 10) - 0.5)


def _long_climbing_teeth(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """Teeth of half to all of `growth`, 11 to 30 steps long, that climb by `growth` over the run."""
    return _slow_leak(step, growth, rng) + growth * rng.uniform(0.5, 1) * (_teeth(step, rng, 11, 30) - 0.5)


def _two_falls(step: np.ndarray, growth: float, rng: np.random.Generator) -> np.ndarray:
    """A net rise by `growth` over the run, with two falls by 20 to 60 % of it."""
    falls = growth * rng.uniform(0.2, 0.6, size=2)
    level = _slow_leak(step, growth + falls.sum(), rng)
    for fall in falls:
        level -= fall * (step >= rng.integers(5, len(step) - 5))
    return level


STABLE: dict[str, Shape] = {
    "flat": _flat,
    "noise": _noise,
    "falling": _falling,
    "warm-up ramp": _warmup_ramp,
    "spikes": _spikes,
    "sawtooth": _sawtooth,
}
"""Kinds that PASS, whatever their size."""

STEPPED: dict[str, Shape] = {"single step": _single_step, "two steps": _two_steps}
"""Kinds that must never FAIL."""

RISING: dict[str, Shape] = {
    "slow leak": _slow_leak,
    "leak": _leak,
    "early leak": _early_leak,
    "late leak": _last(50),
    "staircase": _staircase,
    "flushed leak": _flushed_leak,
}
"""Kinds that must FAIL when they grow by more than 10 %."""

HARD: dict[str, Shape] = {
    "leak of 25 steps": _last(25),
    "saturating": _saturating,
    "toothed leak": _toothed_leak,
    "climbing teeth": _climbing_teeth,
}
"""Kinds that must too, while the noise is small beside them."""

NET: dict[str, Shape] = {"two falls": _two_falls, "long climbing teeth": _long_climbing_teeth}
"""Kinds that never PASS when they grow by more than 10 %."""

LATE: dict[str, Shape] = {f"last {steps}": _last(steps) for steps in (50, 100, 200, 500, 1000, 2000, 5000)}
"""Rises at the end of the run, to find what is seen under heavy noise."""


def trace(
    kind: str, *, growth: float, seed: int, base_mib: float = 1762.0, noise: float = 0.003, steps: int = STEPS
) -> tuple[list[int], list[float]]:
    """Return the steps and values in MiB of one trace."""
    rng = np.random.default_rng([seed, round(1000 * growth), steps, *kind.encode()])
    shape = (STABLE | STEPPED | RISING | HARD | NET | LATE)[kind]
    level = np.zeros(steps)
    level[WARMUP:] = shape(np.arange(steps - WARMUP), growth, rng)
    noise = 0.0 if kind == "flat" else noise
    return list(range(1, steps + 1)), (base_mib * (1 + level + noise * rng.standard_normal(steps))).tolist()
