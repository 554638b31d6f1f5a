"""Plant a seeded fault in the process of a case, from outside: the code on trial stays as it is and knows nothing.

`with planted(case): ...` replaces what the case calls by something faulty and puts it back. Which notebook must notice
which fault is in `contract.faults`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from nsa_lib.contract.case import TREND_WINDOW, WARMUP_STEPS, CaseConfig
from nsa_lib.contract.faults import FAULT_STEP
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.subject import training
from nsa_lib.subject.attention import BACKENDS, fused, selection
from nsa_lib.subject.attention import module as attention_module
from nsa_lib.subject.config import FUSED, NSAConfig
from nsa_lib.subject.model import TinyLM

MIB = 2**20

FULL_BYTES = 8192
"""Size at which a file cannot grow any more, some fifteen heartbeats."""

BEYOND_BYTES = 2**60
"""More than any device has, and than any address space."""

SCRATCH_BYTES = 10 * MIB
"""From this size on CUDA's allocator gives a request a segment of its own."""

SCRATCH_GROWTH_BYTES = 2 * MIB
"""What the size of a segment is rounded to: a buffer that grows by it does not fit into any before."""

SCRATCH_PERIOD = 2
"""Steps from one buffer to the next."""


def planted(case: CaseConfig) -> AbstractContextManager[None]:
    """Return a context in which the case's fault is in force. Raises KeyError for a fault that is none."""
    return PLANTS[case.fault](case)


@contextmanager
def _replaced(new: Callable, name: str, *owners: object) -> Iterator[None]:
    """Put `new` in the place of an attribute of modules or classes."""
    before = [getattr(owner, name) for owner in owners]
    for owner in owners:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, old in zip(owners, before):
            setattr(owner, name, old)


@contextmanager
def _backend(name: str, new: Callable) -> Iterator[None]:
    """Put `new` in the place of a backend's selected branch."""
    before = BACKENDS[name]
    BACKENDS[name] = new
    try:
        with _in_parts() if name == FUSED else nullcontext():
            yield
    finally:
        BACKENDS[name] = before


def _in_parts() -> AbstractContextManager[None]:
    """Let a layer with `fused`, which computes all in one, go branch by branch as the plain backends do."""
    attention = attention_module.NSAttention
    return _replaced(attention._mixed, "_fused", attention)


def _struck(strike: Callable[[], None]) -> AbstractContextManager[None]:
    """Call `strike` in the forward pass of FAULT_STEP, and in each later one that it lives to see."""
    hidden, calls = TinyLM.hidden, 0

    def forward(model: TinyLM, tokens: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls >= FAULT_STEP:
            strike()
        return hidden(model, tokens)

    return _replaced(forward, "hidden", TinyLM)


def _after_beats(act: Callable[[int, dict[str, float]], None]) -> AbstractContextManager[None]:
    """Call `act` with the step and its figures after the heartbeat of each step."""
    original = Heartbeat.beat

    def beat(heartbeat: Heartbeat, phase: str, step: int | None = None, **figures: float) -> None:
        original(heartbeat, phase, step, **figures)
        if step is not None:
            act(step, figures)

    return _replaced(beat, "beat", Heartbeat)


def leak(case: CaseConfig, *, share: float) -> AbstractContextManager[None]:
    """Keep some memory each step: `share` of the peak over the window of the trend."""
    kept: list[torch.Tensor] = []
    step_bytes = 0

    def keep(step: int, figures: dict[str, float]) -> None:
        nonlocal step_bytes
        if step == WARMUP_STEPS:
            step_bytes = int(share * figures["peak_alloc_mib"] * MIB / TREND_WINDOW)
        if step_bytes:
            kept.append(torch.empty(step_bytes, dtype=torch.uint8, device=case.device))

    return _after_beats(keep)


def pool_creep(case: CaseConfig) -> AbstractContextManager[None]:
    """Use a scratch buffer now and then, each time a larger one: without expandable segments none before it fits."""
    scratch_bytes = SCRATCH_BYTES

    def creep(step: int, figures: dict[str, float]) -> None:
        nonlocal scratch_bytes
        if step >= WARMUP_STEPS and step % SCRATCH_PERIOD == 0:
            torch.empty(scratch_bytes, dtype=torch.uint8, device=case.device)
            scratch_bytes += SCRATCH_GROWTH_BYTES

    return _after_beats(creep)


def nan_loss(case: CaseConfig) -> AbstractContextManager[None]:
    """Make the loss NaN from FAULT_STEP on."""
    original, calls = training.chunked_cross_entropy, 0

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(*arguments) * (torch.nan if calls >= FAULT_STEP else 1.0)

    return _replaced(loss, "chunked_cross_entropy", training)


def inf_gradient(case: CaseConfig) -> AbstractContextManager[None]:
    """Make one element of the head's gradient infinite from FAULT_STEP on."""
    original, calls = training.grad_norm, 0

    def norm(model: TinyLM) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls >= FAULT_STEP:
            model.head.weight.grad[0, 0] = torch.inf
        return original(model)

    return _replaced(norm, "grad_norm", training)


def hang_forward(case: CaseConfig) -> AbstractContextManager[None]:
    """Sleep for ever in forward."""
    return _struck(partial(_for_ever, time.sleep))


def hang_gil(case: CaseConfig) -> AbstractContextManager[None]:
    """Sleep for ever in a C function that is called without releasing Python's lock."""
    return _struck(partial(_for_ever, ctypes.PyDLL(None).sleep))


def _for_ever(sleep: Callable[[int], object]) -> None:
    while True:  # a signal ends a sleep, not the hang
        sleep(3600)


def sigkill(case: CaseConfig) -> AbstractContextManager[None]:
    """Kill this process."""
    return _struck(partial(os.kill, os.getpid(), signal.SIGKILL))


def segfault(case: CaseConfig) -> AbstractContextManager[None]:
    """Read address 0."""
    return _struck(partial(ctypes.string_at, 0))


def oom(case: CaseConfig) -> AbstractContextManager[None]:
    """Ask the device for more memory than it has."""
    return _struck(partial(torch.empty, BEYOND_BYTES, dtype=torch.uint8, device=case.device))


def operator_growth(case: CaseConfig) -> AbstractContextManager[None]:
    """Add a hook to the last norm each step; it keeps nothing, so that memory is flat."""
    original = training.backward_step

    def step(model: TinyLM, *arguments: object, **more: object) -> training.StepResult:
        model.norm.register_forward_hook(lambda module, inputs, output: output * 1)
        return original(model, *arguments, **more)

    return _replaced(step, "backward_step", training)


def growing_shapes(case: CaseConfig) -> AbstractContextManager[None]:
    """Repeat the start of the sequence at its end, more of it each step: after 50 steps it is twice as long."""
    original, calls = training.backward_step, 0

    def step(model: TinyLM, tokens: torch.Tensor, **more: object) -> training.StepResult:
        nonlocal calls
        calls += 1
        length = tokens.shape[1] + tokens.shape[1] * calls // TREND_WINDOW
        repeated = tokens.repeat(1, -(-length // tokens.shape[1]))
        return original(model, repeated[:, :length], **more)

    return _replaced(step, "backward_step", training)


def wrong_backend(case: CaseConfig) -> AbstractContextManager[None]:
    """Bind the case's backend to the code of another."""
    name = case.model.backend
    return _backend(name, BACKENDS["masked" if name == "gather" else "gather"])


def first_key(case: CaseConfig) -> AbstractContextManager[None]:
    """Let every query of the case's backend attend to the first token alone, as a causal mask for one query does."""
    name = case.model.backend

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_indices: torch.Tensor, *, l_sel: int, scale: float
    ) -> torch.Tensor:
        with record_function(f"nsa::selected::{name}"):
            k, v = (x[:, :, :1].repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            return (q @ k.mT * scale).softmax(dim=-1) @ v

    return _backend(name, attend)


@contextmanager
def future_leak(case: CaseConfig) -> Iterator[None]:
    """Rank the blocks of each query by the scores of the query one selection block later."""
    original, original_fused = selection.choose_blocks, fused.chosen_blocks

    def choose(scores: torch.Tensor, *, l_sel: int, n_sel: int) -> torch.Tensor:
        return original(scores.roll(-l_sel, dims=2), l_sel=l_sel, n_sel=n_sel)

    def choose_fused(q: torch.Tensor, k_cmp: torch.Tensor, *, config: NSAConfig) -> torch.Tensor:
        return original_fused(q.roll(-config.l_sel, dims=2), k_cmp, config=config)

    with (
        _replaced(choose, "choose_blocks", selection, attention_module),
        _replaced(choose_fused, "chosen_blocks", fused),
        _in_parts(),
    ):
        yield


def late_binding(case: CaseConfig) -> AbstractContextManager[None]:
    """Checkpoint each layer through a function that looks its layer up when it is called: in backward, the last one."""

    def hidden(model: TinyLM, tokens: torch.Tensor) -> torch.Tensor:
        x = model.embedding(tokens)
        for block in model.blocks:
            late = lambda y: block(y)  # noqa: B023, E731
            x = checkpoint(late, x, use_reentrant=True) if model.grad_checkpointing else block(x)
        return model.norm(x)

    return _replaced(hidden, "hidden", TinyLM)


def dead_parameter(case: CaseConfig) -> AbstractContextManager[None]:
    """Cut the keys of the compressed branch off the graph: their projection gets a gradient of zeros."""
    attention = attention_module.NSAttention
    original = attention._project

    def project(layer: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {n: part.detach() if n == "key_cmp" else part for n, part in original(layer, x).items()}

    return _replaced(project, "_project", attention)


def unshifted_labels(case: CaseConfig) -> AbstractContextManager[None]:
    """Ask each position, but for the first, for the token that it was given."""
    original = training.chunked_cross_entropy

    def loss(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, *chunk: int) -> torch.Tensor:
        return original(hidden, head, labels.roll(1, dims=-1), *chunk)

    return _replaced(loss, "chunked_cross_entropy", training)


def silent_heartbeat(case: CaseConfig) -> AbstractContextManager[None]:
    """Write no heartbeat from FAULT_STEP on, and train on."""
    original = Heartbeat.beat

    def beat(heartbeat: Heartbeat, phase: str, step: int | None = None, **figures: float) -> None:
        if step is None or step < FAULT_STEP:
            original(heartbeat, phase, step, **figures)

    return _replaced(beat, "beat", Heartbeat)


def torn_heartbeat(case: CaseConfig) -> AbstractContextManager[None]:
    """Kill this process when half of a heartbeat is written."""
    original, write = Heartbeat.beat, os.write

    def torn(descriptor: int, line: bytes) -> None:
        write(descriptor, line[: len(line) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def beat(heartbeat: Heartbeat, phase: str, step: int | None = None, **figures: float) -> None:
        with _replaced(torn, "write", os) if step == FAULT_STEP else nullcontext():
            original(heartbeat, phase, step, **figures)

    return _replaced(beat, "beat", Heartbeat)


@contextmanager
def disk_full(case: CaseConfig) -> Iterator[None]:
    """Let no file of this process grow beyond FULL_BYTES."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


PLANTS: dict[str, Callable[[CaseConfig], AbstractContextManager[None]]] = {
    "none": lambda case: nullcontext(),
    "leak_12": partial(leak, share=0.12),
    "leak_30": partial(leak, share=0.30),
    "pool_creep": pool_creep,
    "nan_loss": nan_loss,
    "inf_gradient": inf_gradient,
    "hang_forward": hang_forward,
    "hang_gil": hang_gil,
    "sigkill": sigkill,
    "segfault": segfault,
    "oom": oom,
    "operator_growth": operator_growth,
    "growing_shapes": growing_shapes,
    "wrong_backend": wrong_backend,
    "first_key": first_key,
    "future_leak": future_leak,
    "late_binding": late_binding,
    "dead_parameter": dead_parameter,
    "unshifted_labels": unshifted_labels,
    "silent_heartbeat": silent_heartbeat,
    "torn_heartbeat": torn_heartbeat,
    "disk_full": disk_full,
}
"""How each fault of `contract.faults` is planted."""
