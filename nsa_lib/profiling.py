"""See what a case really executes: the backend it enters, and its operators early and late.

Not covered: the route through compiled code. A dispatch mode makes torch run eagerly, or sees no named range: attest
the route before compiling, on the same layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils._python_dispatch import TorchDispatchMode

from nsa_lib.config import WARMUP_STEPS, ConfigError
from nsa_lib.operators import WINDOW_STEPS

MIB = 2**20
ROUTE_PREFIX = "nsa::selected::"
"""Before a backend's name, in the range that it enters by `torch.profiler.record_function`."""

FEWEST_STEPS = WARMUP_STEPS + WINDOW_STEPS + 1 + WINDOW_STEPS
"""Steps that hold both windows, and one before the late one in which the profiler warms up."""


def executed_routes(run: Callable[[], object]) -> set[str]:
    """Call `run` and return the backends of the selected branch that it entered, by name.

    A backend says so itself, by `record_function("nsa::selected::<name>")`: what was asked for is not looked at.
    """
    with _Routes() as routes:
        run()
    return routes.names


class _Routes(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.profiler._record_function_enter_new.default and args[0].startswith(ROUTE_PREFIX):
            self.names.add(args[0].removeprefix(ROUTE_PREFIX))
        return func(*args, **(kwargs or {}))


class OperatorWindows:
    """Profile the first three steps after the warm-up and the last three of a case.

    Use as a context manager and call `step` after every step. `early` and `late` then hold, per operator, totals over
    the window: {name: {"count", "self_cpu_ms", "self_device_ms", "self_cpu_mib", "self_device_mib"}}.

    Raises ConfigError for fewer steps than hold both windows.
    """

    def __init__(self, *, steps: int, device: str):
        if steps < FEWEST_STEPS:
            raise ConfigError(f"steps={steps}: accepts {FEWEST_STEPS} or more where operators are profiled")
        self.early: dict[str, dict[str, float]] = {}
        self.late: dict[str, dict[str, float]] = {}
        self._windows = {WARMUP_STEPS: self.early, steps - WINDOW_STEPS: self.late}
        self._activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
        self._profile: profile | None = None
        self._window: dict[str, dict[str, float]] = {}
        self._recorded = 0
        self._step = 1

    def __enter__(self) -> OperatorWindows:
        return self

    def __exit__(self, *exception) -> None:
        if self._profile is not None:
            self._profile.stop()

    def step(self, counts: Counter[str] | None = None) -> None:
        """Say that a step has ended; the profiler counts by itself."""
        self._step += 1
        if self._profile is not None:
            self._profile.step()
            self._recorded += 1
            if self._recorded == 1 + WINDOW_STEPS:
                self._profile.stop()
                self._window.update(_operators(self._profile.key_averages()))
                self._profile = None
        if self._step in self._windows:
            self._window = self._windows[self._step]
            self._recorded = 0
            self._profile = profile(
                activities=self._activities,
                schedule=schedule(wait=0, warmup=1, active=WINDOW_STEPS, repeat=1),
                profile_memory=True,
            )
            self._profile.start()


class TrackedWindows:
    """The same two windows, from the operators that a memory meter counted: exact, without a profiler, and only counts.

    With fewer steps than hold both windows, both stay empty.
    """

    def __init__(self, *, steps: int):
        self.early: dict[str, dict[str, float]] = {}
        self.late: dict[str, dict[str, float]] = {}
        self._windows = {}
        if steps >= FEWEST_STEPS:
            self._windows = {WARMUP_STEPS + 1 + i: self.early for i in range(WINDOW_STEPS)}
            self._windows |= {steps - i: self.late for i in range(WINDOW_STEPS)}
        self._step = 0

    def __enter__(self) -> TrackedWindows:
        return self

    def __exit__(self, *exception) -> None:
        return None

    def step(self, counts: Counter[str] | None = None) -> None:
        """Say that a step has ended, with the calls of each operator in it."""
        self._step += 1
        if self._step in self._windows:
            window = self._windows[self._step]
            for name, count in (counts or {}).items():
                window[name] = {"count": window.get(name, {"count": 0})["count"] + count}


def _operators(averages: Iterable) -> dict[str, dict[str, float]]:
    return {
        event.key: {
            "count": event.count,
            "self_cpu_ms": event.self_cpu_time_total / 1000,
            "self_device_ms": event.self_device_time_total / 1000,
            "self_cpu_mib": event.self_cpu_memory_usage / MIB,
            "self_device_mib": event.self_device_memory_usage / MIB,
        }
        for event in averages
        if not event.key.startswith(("ProfilerStep", "[memory]"))
    }
