"""Faults of the code on trial: what it computes is wrong, or it does more than it should."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from nsa_lib.contract.case import TREND_WINDOW, CaseConfig
from nsa_lib.contract.faults import strikes_at_call
from nsa_lib.subject import training
from nsa_lib.subject.attention import BACKENDS, fused, selection
from nsa_lib.subject.attention import module as attention_module
from nsa_lib.subject.attention.protocol import ROUTE_PREFIX
from nsa_lib.subject.config import FUSED, NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.faults.replacing import replaced


def nan_loss(case: CaseConfig) -> AbstractContextManager[None]:
    """Make the loss NaN from FAULT_STEP on."""
    original, calls, strike = training.chunked_cross_entropy, 0, strikes_at_call(case.fault)

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(*arguments) * (torch.nan if calls >= strike else 1.0)

    return replaced(loss, "chunked_cross_entropy", training)


def inf_gradient(case: CaseConfig) -> AbstractContextManager[None]:
    """Make one element of the head's gradient infinite from FAULT_STEP on."""
    original, calls, strike = training.grad_norm, 0, strikes_at_call(case.fault)

    def norm(model: TinyLM) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls >= strike:
            model.head.weight.grad[0, 0] = torch.inf
        return original(model)

    return replaced(norm, "grad_norm", training)


def operator_growth(case: CaseConfig) -> AbstractContextManager[None]:
    """Add a hook to the last norm each step; it keeps nothing, so that memory is flat."""
    original = training.backward_step

    def step(model: TinyLM, *arguments: object, **more: object) -> training.StepResult:
        model.norm.register_forward_hook(lambda module, inputs, output: output * 1)
        return original(model, *arguments, **more)

    return replaced(step, "backward_step", training)


def growing_shapes(case: CaseConfig) -> AbstractContextManager[None]:
    """Repeat the start of the sequence at its end, more of it each step: after 50 steps it is twice as long."""
    original, calls = training.backward_step, 0

    def step(model: TinyLM, tokens: torch.Tensor, **more: object) -> training.StepResult:
        nonlocal calls
        calls += 1
        length = tokens.shape[1] + tokens.shape[1] * calls // TREND_WINDOW
        repeated = tokens.repeat(1, -(-length // tokens.shape[1]))
        return original(model, repeated[:, :length], **more)

    return replaced(step, "backward_step", training)


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
        with record_function(ROUTE_PREFIX + name):
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
        replaced(choose, "choose_blocks", selection, attention_module),
        replaced(choose_fused, "chosen_blocks", fused),
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

    return replaced(hidden, "hidden", TinyLM)


def dead_parameter(case: CaseConfig) -> AbstractContextManager[None]:
    """Cut the keys of the compressed branch off the graph: their projection gets a gradient of zeros."""
    attention = attention_module.NSAttention
    original = attention.project

    def project(layer: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {n: part.detach() if n == "key_cmp" else part for n, part in original(layer, x).items()}

    return replaced(project, "project", attention)


def unshifted_labels(case: CaseConfig) -> AbstractContextManager[None]:
    """Ask each position, but for the first, for the token that it was given."""
    original = training.chunked_cross_entropy

    def loss(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, *chunk: int) -> torch.Tensor:
        return original(hidden, head, labels.roll(1, dims=-1), *chunk)

    return replaced(loss, "chunked_cross_entropy", training)


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
    return replaced(attention.branch_by_branch, "all_at_once", attention)
