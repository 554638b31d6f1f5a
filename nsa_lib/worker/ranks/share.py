"""A rank's share of a step: its sequences, and the time in which it works and waits for no other rank."""

from __future__ import annotations

import time

import torch
from torch import nn

from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.ranks.group import rank_and_count


def own_sequences(tokens: torch.Tensor) -> torch.Tensor:
    """Return this rank's sequences of a batch: with n ranks the rank-th n-th of them, [B, T] -> [B / n, T]."""
    rank, count = rank_and_count()
    return tokens.chunk(count)[rank]


class OwnTime:
    """Time the forward passes of a model's layers, those of recomputation too.

    Ranks wait for each other in every step, so that the step takes the same time on all of them; within a layer's
    forward nothing waits. FSDP2 waits for the layer's parameters before it. On CUDA the time is the device's; on a CPU
    the thread's own, which does not count while other processes have the core.
    """

    def __init__(self, model: TinyLM, device: str):
        self._blocks, self._stamp = list(model.blocks), _stamp_cuda if device == "cuda" else _stamp_cpu
        self._stamps: list[tuple[object, object]] = []
        self._began: object = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> OwnTime:
        for block in self._blocks:
            first, *_, last = block.children()
            self._hooks += [first.register_forward_pre_hook(self._begin), last.register_forward_hook(self._end)]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, arguments: tuple) -> None:
        self._began = self._stamp()

    def _end(self, module: nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        self._stamps.append((self._began, self._stamp()))

    def read_ms(self) -> float:
        """Return the time since the last reading. The device must have done what it was asked for."""
        stamps, self._stamps = self._stamps, []
        return sum(_between_ms(*pair) for pair in stamps)


def _stamp_cpu() -> float:
    return time.thread_time()


def _stamp_cuda() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between_ms(begin: object, end: object) -> float:
    return begin.elapsed_time(end) if isinstance(begin, torch.cuda.Event) else 1000 * (end - begin)
