"""See what a case really executes: the backend it enters, and its operators early and late.

Not covered: the route through compiled code. A dispatch mode makes torch run eagerly, or sees no named range. So the
route is read before compiling, from the same layers.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from nsa_lib.contract.allocator import MIB
from nsa_lib.contract.case import FEWEST_STEPS, WARMUP_STEPS, WINDOW_STEPS
from nsa_lib.subject.attention.protocol import ROUTE_PREFIX
from nsa_lib.subject.config import ConfigError

FIGURES = ("count", "self_device_ms", "self_device_mib")

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a trace whose events ran on the GPU."""

CPU_DEVICE = 0
"""The CPU, where a trace says whose memory an event is about."""


def executed_routes(run: Callable[[], object]) -> set[str]:
    """Call `run` and return the backends of the selected branch that it entered, by name.

    A backend names itself (`subject.attention.protocol.ROUTE_PREFIX`): what was asked for is not looked at.
    """
    with _Routes() as routes:
        run()
    return routes.names


class _Routes(TorchDispatchMode):
    supports_higher_order_operators = True  # FlexAttention is one

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave a user's kernel compiled: she may demand that it is, as `fullgraph` does."""
        return True

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.profiler._record_function_enter_new.default and args[0].startswith(ROUTE_PREFIX):
            self.names.add(args[0].removeprefix(ROUTE_PREFIX))
        return func(*args, **(kwargs or {}))


class OperatorWindows:
    """Profile the first step after the warm-up and the last step of a case.

    Use as a context manager and call `step` after every step. `early` and `late` then hold, per operator and kernel,
    totals over the window: {name: {"count", "self_device_ms", "self_device_mib"}}. The time of a kernel is that of the
    operator that launched it.

    Each window is a profile of its own without a schedule: with torch 2.11 on CUDA, one that is stopped while its
    schedule warms up ends the process with SIGSEGV.

    Raises ConfigError for fewer steps than hold both windows.
    """

    def __init__(self, *, steps: int, activities: Sequence[ProfilerActivity]):
        if steps < FEWEST_STEPS:
            raise ConfigError(f"steps={steps}: accepts {FEWEST_STEPS} or more where operators are profiled")
        self.early: dict[str, dict[str, float]] = {}
        self.late: dict[str, dict[str, float]] = {}
        # By the step after which a window begins.
        self._windows = {WARMUP_STEPS: self.early, steps - WINDOW_STEPS: self.late}
        self._activities = activities
        self._profile: profile | None = None
        self._window: dict[str, dict[str, float]] = {}
        self._began = self._step = 0

    def __enter__(self) -> OperatorWindows:
        return self

    def __exit__(self, *exception) -> None:
        if self._profile is not None:
            self._profile.stop()

    def step(self, counts: Counter[str] | None = None) -> None:
        """Say that a step has ended; the profiler counts by itself."""
        self._step += 1
        if self._profile is not None and self._step == self._began + WINDOW_STEPS:
            self._profile.stop()
            self._window.update(_operators(self._profile))
            self._profile = None
        if self._step in self._windows:
            self._window, self._began = self._windows[self._step], self._step
            self._profile = profile(activities=self._activities, profile_memory=True)
            self._profile.start()


class TrackedWindows:
    """The same two windows, from the operators that a memory meter counted: exact, without a profiler, counts alone.

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


def _operators(recorded: profile) -> dict[str, dict[str, float]]:
    """Return the totals of each operator and kernel that a profile recorded.

    Read from the trace that the profiler writes: `key_averages` takes 0.1 ms an event, minutes for a step of `gather`.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    totals: dict[str, dict[str, float]] = {}
    launched_by: dict[int, str] = {}
    for event in events:
        if event.get("cat") in ("cpu_op", *ON_DEVICE):
            row = totals.setdefault(event["name"], dict.fromkeys(FIGURES, 0))
            row["count"] += 1
            if event["cat"] == "cpu_op":
                launched_by[event["args"]["External id"]] = event["name"]
    for event in events:
        if event.get("cat") in ON_DEVICE:
            launcher = launched_by.get(event["args"].get("External id"), event["name"])
            totals[launcher]["self_device_ms"] += event["dur"] / 1000
    for name, mib in _kept_mib(events):
        totals[name]["self_device_mib"] += mib
    return totals


def _kept_mib(events: Sequence[Mapping]) -> Iterator[tuple[str, float]]:
    """Yield what each allocation and release on the device adds, in MiB, with the innermost operator that made it."""
    by_thread = defaultdict(list)
    for event in events:
        allocates = event.get("name") == "[memory]" and event["args"]["Device Type"] != CPU_DEVICE
        if allocates or event.get("cat") == "cpu_op":
            by_thread[event["tid"]].append(event)
    for thread in by_thread.values():
        running: list[tuple[float, str]] = []
        for event in sorted(thread, key=lambda event: (event["ts"], -event.get("dur", 0))):
            while running and running[-1][0] < event["ts"]:
                running.pop()
            if "dur" in event:
                running.append((event["ts"] + event["dur"], event["name"]))
            elif running:
                yield running[-1][1], event["args"]["Bytes"] / MIB
