"""Time calls on a device, measure the memory that they take, and what the device can move and multiply.

CUDA events stand around each call. Before each, a buffer larger than the L2 cache is written, so that no call finds its
inputs there; the host runs ahead meanwhile, which hides a few launches (as triton.testing.do_bench does). Under a CUDA
graph GRAPH_CALLS calls follow each other without launches and with a warm cache: kernels alone (as do_bench_cudagraph
does). The CPU's clock is the plain twin, with which the benchmark is tried where there is no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles

import torch

from tests.bench_gpu.floors import Ceilings

REPEAT_MS = 40.0
"""Time that the calls of one figure take together."""

FEWEST, MOST = 3, 100
"""Calls of one figure, whatever they take."""

GRAPH_CALLS, GRAPH_REPLAYS = 10, 10

FLUSH_BYTES = 256 * 2**20
"""Larger than the L2 cache: 50 MB on an H100 or H200, 40 on an A100."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """How long one call takes, in ms."""

    median_ms: float
    low_ms: float
    """20 % of the calls are faster."""
    high_ms: float
    """80 % of the calls are faster."""
    calls: int

    @classmethod
    def of(cls, times_ms: list[float]) -> Timing:
        """Return the statistics of two calls or more."""
        fifths = quantiles(times_ms, n=10, method="inclusive")
        return cls(median_ms=fifths[4], low_ms=fifths[1], high_ms=fifths[7], calls=len(times_ms))


def repeats(estimate_ms: float) -> int:
    """Return how many calls that take so long make one figure."""
    return max(FEWEST, min(MOST, int(REPEAT_MS / max(estimate_ms, 1e-3))))


class CudaClock:
    """Times calls on the current CUDA device."""

    device = "cuda"

    def __init__(self):
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self._capture_failed = False

    def time(self, call: Call) -> Timing:
        """Time a call, launches and all; its kernels are compiled already."""
        (estimate_ms,) = self._events(call, 1)
        return Timing.of(self._events(call, repeats(estimate_ms)))

    def once_s(self, call: Call) -> float:
        """Return the seconds that a call takes by the host's clock, compiling included."""
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def time_graph(self, prepare: Callable[[], Call]) -> Timing:
        """Time a call under a CUDA graph; see `capture` for `prepare`."""
        replay = self.capture(prepare, calls=GRAPH_CALLS)
        replay()
        return Timing.of([ms / GRAPH_CALLS for ms in self._events(replay, GRAPH_REPLAYS)])

    def capture(self, prepare: Callable[[], Call], *, calls: int) -> Call:
        """Return the replay of a CUDA graph of some calls, one after the other.

        `prepare` makes the call, and runs on the capturing stream: autograd runs a backward on the stream of its
        forward, and a stream that does not capture must not be waited for. A capture that fails leaves torch 2.11's
        allocator believing in it (pytorch/pytorch#180395), so a call that waits for the device is found out before, and
        after a failure nothing is captured any more.
        """
        if self._capture_failed:
            raise RuntimeError("an earlier capture failed, and torch captures nothing after that")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # around the capture too: one that fails does not restore the stream itself
            call = prepare()
            for _ in range(FEWEST):
                call()
            self._refuse_waiting(call)
            graph = torch.cuda.CUDAGraph()
            self._capture_failed = True
            with torch.cuda.graph(graph, stream=stream):
                for _ in range(calls):
                    call()
            self._capture_failed = False
        torch.cuda.synchronize()

        def replay() -> Call:
            graph.replay()
            return call  # what it holds must outlive the graph

        return replay

    def _refuse_waiting(self, call: Call) -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def extra_mib(self, call: Call) -> float:
        """Return the peak MiB of a call, what it returns included, beyond what was allocated before it."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        torch.cuda.synchronize()
        del kept
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def release(self) -> None:
        """Give the cached memory back to the device; after a failed capture torch cannot."""
        torch.cuda.synchronize()
        if not self._capture_failed:
            torch.cuda.empty_cache()

    def _events(self, call: Call, count: int) -> list[float]:
        starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(count)] for _ in range(2))
        for start, end in zip(starts, ends, strict=True):
            self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]


class WallClock:
    """Times calls on a CPU; it has no graphs and no counter of memory."""

    device = "cpu"

    def time(self, call: Call) -> Timing:
        """Time a call by the host's clock."""
        return Timing.of([1000 * self.once_s(call) for _ in range(FEWEST)])

    def once_s(self, call: Call) -> float:
        """Return the seconds that a call takes."""
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def time_graph(self, prepare: Callable[[], Call]) -> Timing:
        """Raise RuntimeError: a CPU has no graphs."""
        raise RuntimeError("a CPU has no CUDA graphs")

    def capture(self, prepare: Callable[[], Call], *, calls: int) -> Call:
        """Raise RuntimeError: a CPU has no graphs."""
        raise RuntimeError("a CPU has no CUDA graphs")

    def extra_mib(self, call: Call) -> None:
        """Return None: nothing counts a CPU's memory."""
        call()

    def release(self) -> None:
        """Do nothing: a CPU caches nothing."""


Clock = CudaClock | WallClock


def ceilings(clock: Clock, *, copy_bytes: int, side: int, dtype: torch.dtype) -> Ceilings:
    """Measure a copy of random bytes on the device, and a product of two random side x side matrices."""
    copy_ms = clock.time(_copy(copy_bytes, clock.device)).median_ms
    matmul_ms = clock.time(_matmul(side, dtype, clock.device)).median_ms
    clock.release()
    return Ceilings(copy_gb_per_s=2 * copy_bytes / copy_ms / 1e6, matmul_tflop_per_s=2 * side**3 / matmul_ms / 1e9)


def _copy(size_bytes: int, device: str) -> Call:
    source = torch.empty(size_bytes // 8, dtype=torch.int64, device=device).random_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _matmul(side: int, dtype: torch.dtype, device: str) -> Call:
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return lambda: a @ b
