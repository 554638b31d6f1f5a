"""The train step as one CUDA graph: the host launches once a step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nsa_lib.contract.allocator import MIB
from nsa_lib.subject.training import StepResult
from nsa_lib.worker.memory import CudaMeter


class GraphedStep:
    """A step that runs plainly in its first call, is captured in the second, and replayed in that and all others.

    The first call compiles kernels and makes the optimizer's state, and so must be on the capturing stream: autograd
    runs a backward on the stream of its forward. A step that waits for the device cannot be captured: RuntimeError.

    A replay allocates nothing. What it uses lies where the capture put it: beside what is held, as much as was free
    again at the capture's end and is not handed out to others. A meter is told (`CudaMeter.replayed`).
    """

    def __init__(self, step: Callable[[torch.Tensor, Callable[[str], None]], StepResult]):
        self._step, self._stream = step, torch.cuda.Stream()
        self._tokens: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: StepResult | None = None
        self._above_mib = 0.0

    def take(self, tokens: torch.Tensor, meter: CudaMeter) -> tuple[StepResult, dict[str, float]]:
        """Take a step on tokens, always of the same shape; return its result, which the next one overwrites."""
        if self._tokens is None:
            self._tokens = tokens.clone()
            return self._plainly(meter), {}
        self._tokens.copy_(tokens)
        if self._graph is None:
            self._capture()
        self._graph.replay()
        meter.replayed(self._above_mib)
        return self._result, {}

    def _plainly(self, meter: CudaMeter) -> StepResult:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._step(self._tokens, meter.mark)
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def _capture(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._result = self._step(self._tokens, lambda phase: None)
        # The meter set the peak back when the step began.
        self._above_mib = (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) / MIB
