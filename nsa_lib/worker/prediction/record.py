"""Record what a case's steps allocate and free, in order: the step itself runs on fake tensors, shapes without data.

Fake tensors are on the CPU, also for a case on CUDA: without a CUDA device torch runs no autograd on fake CUDA tensors.
Here, and nowhere else, is what CUDA does differently:

- attention: the CPU would choose another kernel, with other outputs (`fused_attention`);
- the workspace that torch hands to cuBLAS, one for each thread that multiplies: forward's and autograd's;
- temporaries inside an operator, which no dispatch mode sees, where they are as large as its input;
- sums of gradients, which autograd makes in place.

Each was found in the allocations that torch's allocator recorded on an H200; fed with those, the simulation reserves
what the device did, to the MiB. Known and not in here: the buffer of a reduction over many rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import _engine_run_backward

from nsa_lib.contract.allocator import MIB
from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject import distributed, training
from nsa_lib.subject.attention.tables import own_tables
from nsa_lib.subject.model import TinyLM, make_model
from nsa_lib.subject.own.attention import install
from nsa_lib.worker.allocator import ROUNDING
from nsa_lib.worker.building import step_of
from nsa_lib.worker.prediction.before import before_training
from nsa_lib.worker.prediction.fused_attention import FusedAttentionMode
from nsa_lib.worker.prediction.sharing import rank_of_nobody
from nsa_lib.worker.storages import StorageTracker, tensors_in

STEPS = 2
"""The first step makes the optimizer's state, the second one finds it."""

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")

INNER_COPIES = ("aten::logsumexp",)
"""Operators whose CUDA implementation makes a temporary of its input's size: logsumexp exponentiates a copy."""

SOFTMAX_BACKWARD = "aten::_softmax_backward_data"
"""Its CUDA implementation multiplies gradient and output into a temporary, once its output is there."""

ROLL = "aten::roll"
"""Its CUDA implementation makes a copy of an input that is not laid out without gaps."""

CUBLAS_WORKSPACE_MIB = {"9": 32.0, "10": 32.0, "12": 32.0}
"""cuBLAS workspace of a thread, by major compute capability: torch's :4096:8, that is 8 buffers of 4,096 KiB."""

CUBLAS_WORKSPACE_OLDER_MIB = 8.125
"""The same of earlier capabilities: :4096:2:16:8, that is 2 buffers of 4,096 KiB and 8 of 16 KiB."""


class PredictionError(RuntimeError):
    """A case that cannot be predicted, and why, in one line."""


@dataclass(frozen=True)
class Trace:
    """What steps allocate and free. Sizes are in bytes, multiples of what the allocator rounds to."""

    device: str
    """Device of the case."""
    events: tuple[tuple[str, int | str, int], ...]
    """`("+", storage, bytes)`, `("-", storage, 0)`, `("phase", name, 0)` as each phase ends, `step` last; once
    `("empty", "", 0)`, where what is cached goes back to the device and training begins."""
    terms: tuple[str, ...]
    """What each storage is, by its number: one of `replay.TERMS`."""


def record(case: CaseConfig, *, compute_capability: str) -> Trace:
    """Run STEPS steps of a case under fake tensors and return what they allocate.

    Args:
        case: of work `train` or `backward`.
        compute_capability: of the CUDA device that the case is meant for, such as `9.0`; without meaning on the CPU.

    Raises:
        PredictionError: for a case that fake tensors cannot run, or a torch without them.
    """
    if case.work not in ("train", "backward"):
        raise PredictionError(f"work={case.work}: only train and backward are predicted")
    if case.compile:
        raise PredictionError("compile=True: compiled code allocates otherwise")
    major = compute_capability.split(".")[0]
    workspace_mib = CUBLAS_WORKSPACE_MIB.get(major, CUBLAS_WORKSPACE_OLDER_MIB) if case.device == "cuda" else 0.0
    attention = FusedAttentionMode() if case.device == "cuda" else nullcontext()
    install(case.model)
    recorder = _Recorder(int(workspace_mib * MIB), on_cuda=case.device == "cuda")
    ranks = rank_of_nobody(case, recorder.communicate) if case.is_launched else nullcontext()
    with own_tables(), ranks as share, _fake_tensors(), attention:
        with _default_dtype(getattr(torch, case.dtype)):  # a fake parameter cannot be cast afterwards
            model = make_model(case.model, grad_checkpointing=case.grad_checkpointing)
        take = _steps_of(case, model, share)
        optimizer = training.make_optimizer(model, case.lr) if case.work == "train" else None
        tokens = torch.empty(case.batch // case.ranks, case.seq_len + 1, dtype=torch.int64)  # counts once used
        model.norm.register_forward_hook(lambda *_: recorder.enter("loss"))
        recorder.track(model)
        recorder.label("parameters", model)
        with recorder:
            if case.device == "cuda":  # on the CPU the meter begins after it, and ranks check nothing before
                with _default_dtype(getattr(torch, case.dtype)):
                    if not case.is_launched:
                        before_training(model, case, recorder)
                recorder.empty()
            for _ in range(STEPS):
                recorder.enter("forward")
                _step(take, model, optimizer, tokens, recorder)
        # Before the model disappears: its end is not part of a step.
        return Trace(case.device, *recorder.trace)


def _steps_of(case: CaseConfig, model: TinyLM, share: Callable[[TinyLM], nn.Module] | None) -> Callable:
    """Return the step that a case takes; of several ranks one."""
    if case.work == "backward":
        return lambda model, optimizer, tokens, *, mark: training.backward_step(
            model, tokens, mark=mark, loss_chunk=case.loss_chunk
        )
    if share is not None:
        return partial(distributed.train_step, share(model))
    return step_of(case)


def _step(
    take: Callable, model: TinyLM, optimizer: torch.optim.Optimizer | None, tokens: torch.Tensor, recorder: _Recorder
) -> None:
    def mark(phase: str) -> None:
        if phase == "forward":
            recorder.keep("activations")
        if phase == "backward":
            recorder.label("gradients", [p.grad for p in model.parameters()])
        recorder.end(phase)

    result = take(model, optimizer, tokens, mark=mark)
    recorder.label("optimizer", optimizer)
    del result
    recorder.keep("tables")
    recorder.end("step")


class _Recorder(StorageTracker):
    """Write a trace: what appears, what disappears, and what each storage turns out to be."""

    def __init__(self, workspace_bytes: int, *, on_cuda: bool):
        super().__init__("meta")  # where a fake tensor's storage is
        self.events: list[tuple[str, int | str, int]] = []
        self.terms: list[str] = []
        self._workspace_bytes, self._on_cuda = workspace_bytes, on_cuda
        self._without_workspace = {"forward", "backward"}
        self._part = "forward"
        self._communicates = False
        self._fresh: set[int] = set()
        self._sums: dict[int, int] = {}
        """Storages of sums of gradients, and of the gradient that each replaces."""

    def enter(self, part: str) -> None:
        """Begin a part of a step: `forward`, `loss` (the end of forward), `backward`, `optimizer`, `between` steps."""
        self._part = part
        if part == "forward":
            self._fresh.clear()

    def communicate(self, communicates: bool) -> None:
        """Begin or end to make the buffers of a collective."""
        self._communicates = communicates

    def end(self, phase: str) -> None:
        """End a phase."""
        self.events.append(("phase", phase, 0))
        self.enter({"forward": "backward", "backward": "optimizer"}.get(phase, "between"))

    def empty(self) -> None:
        """Note that what is cached goes back to the device, and that training begins."""
        self.events.append(("empty", "", 0))

    def keep(self, term: str) -> None:
        """Label `term` what appeared in forward, outside the loss, and still lives."""
        for storage in self._fresh:
            self.terms[storage] = term

    def label(self, term: str, *objects: object) -> None:
        """Label the storages of objects `term`."""
        for tensor in tensors_in(objects):
            storage = self.kept_for(tensor)
            if storage is not None:
                self.terms[storage] = term
                self._fresh.discard(storage)

    def born(self, nbytes: int) -> int:
        term = "communication" if self._communicates else "loss" if self._part == "loss" else "temporaries"
        storage = self._allocate(nbytes, term)
        if self._part == "forward" and not self._communicates:
            self._fresh.add(storage)
        return storage

    def died(self, kept: int) -> None:
        self._fresh.discard(kept)
        self.events.append(("-", kept, 0))

    def _allocate(self, nbytes: int, term: str) -> int:
        self.terms.append(term)
        storage = len(self.terms) - 1
        self.events.append(("+", storage, nbytes))
        return storage

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self._on_cuda or any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return super().__torch_dispatch__(func, types, args, kwargs)
        operator = func.name().partition(".")[0].rstrip("_")
        copy = self._inner_copy(args[0]) if _copies_inside(operator, args) else None
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if operator == SOFTMAX_BACKWARD:
            copy = self._inner_copy(args[0])
        if copy is not None:
            self.events.append(("-", copy, 0))
        if operator == "aten::add" and _is_called_by_autograd():
            self._sums[self.kept_for(result)] = self.kept_for(args[0])
        self._make_workspace(operator)
        return result

    @property
    def trace(self) -> tuple[tuple[tuple[str, int | str, int], ...], tuple[str, ...]]:
        """The events, and what each storage is, with autograd's sums of gradients made in place where they can be.

        It adds a gradient to one that nobody else holds in place. Of fake tensors, and under any mode, it makes a new
        one: the sum appears, and the one that it replaces disappears next.
        """
        events, terms, same, replaced = [], list(self.terms), {}, None
        for event, following in zip(self.events, [*self.events[1:], None], strict=True):
            kind, what, nbytes = event
            old = self._sums.get(what) if kind == "+" else None
            if event == replaced:
                replaced = None
            elif old is not None and following == ("-", old, 0):
                replaced, same[what] = following, same.get(old, old)
                terms[same[what]] = self.terms[what]
            else:
                events.append((kind, same.get(what, what), nbytes))
        return tuple(events), tuple(terms)

    def _inner_copy(self, tensor: torch.Tensor) -> int:
        nbytes = tensor.numel() * tensor.element_size()
        return self._allocate(-(-nbytes // ROUNDING) * ROUNDING, "loss" if self._part == "loss" else "temporaries")

    def _make_workspace(self, operator: str) -> None:
        """Allocate the workspace of a thread at its first product: cuBLAS asks for it when the output is there."""
        thread = "backward" if self._part == "backward" else "forward"
        if operator in PRODUCTS and thread in self._without_workspace:
            self._without_workspace.discard(thread)
            self._allocate(self._workspace_bytes, "workspace")


WRAPPERS = ("torch._compile", "torch._dynamo.eval_frame")
"""Modules of torch whose functions stand between an operator and the mode that it is told to."""


def _is_called_by_autograd() -> bool:
    """Return whether autograd itself called the operator that is told now: not a function of Python that it runs."""
    frame = sys._getframe(2)
    while frame.f_globals["__name__"] in WRAPPERS:
        frame = frame.f_back
    return frame.f_code is _engine_run_backward.__code__


def _copies_inside(operator: str, args: tuple) -> bool:
    return operator in INNER_COPIES or (operator == ROLL and not args[0].is_contiguous())


def _fake_tensors() -> AbstractContextManager:
    try:
        # Private: torch has no public way to run autograd on shapes alone.
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError as error:
        raise PredictionError(f"torch {torch.__version__} has no torch._subclasses.fake_tensor: {error}") from None
    return FakeTensorMode()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
