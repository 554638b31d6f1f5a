"""Checks of what a call leaves behind: recomputation, state, its input, memory; and of gradients that reach nothing."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sized

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from nsa_lib.subject import training
from nsa_lib.worker.preflight.error_budget import steps
from nsa_lib.worker.preflight.finding import Finding, at_most, not_judged
from nsa_lib.worker.preflight.own.numbers import ROUNDINGS, error_of
from nsa_lib.worker.preflight.own.trial import SHORT, Trial, outcome, trained_model

LAYERS = 2

VOCAB = 64

STEPS = 3
"""Steps in one of which every parameter must get a gradient: a layer that starts at zero hides others in the first."""

CALLS = 4


def checkpointing(trial: Trial) -> Finding:
    """Hold gradients and state with checkpointing against those without; backward may draw no random numbers."""
    is_model = trial.case.model.brings == "model"
    if is_model and not trial.fresh().can_checkpoint:
        return not_judged("the model has no gradient_checkpointing_enable", required=False)
    given, found = trial.input(1, trial.case.seq_len), []
    for on in (False, True):
        module = trial.fresh()
        if is_model:
            module.grad_checkpointing = on
        elif on:
            module = _Checkpointed(module)
        before = state_of(module)  # switching it on may set more than its layers have
        torch.manual_seed(trial.case.seed + 4)
        output, entered = trial.run(module, given)
        drawn = _rng(trial)
        output.backward(torch.ones_like(output))
        same_rng = torch.equal(drawn, _rng(trial))
        gradients = {n.removeprefix("module."): p.grad for n, p in module.named_parameters() if p.requires_grad}
        gradients |= {"input": None if entered is None else entered.grad}
        found.append((gradients, _moved(before, state_of(module)), same_rng, drawn))
    return _compared_with_checkpointing(trial, *found, reseeds=_reseeds(trial, given, found[0][3]))


def _reseeds(trial: Trial, given: Tensor, left: Tensor) -> bool:
    """Return whether a call leaves the generator where another call, after another seed, left it."""
    module = trial.fresh()
    torch.manual_seed(trial.case.seed + 5)
    with torch.no_grad():
        trial.run(module, given)
    return torch.equal(_rng(trial), left)


def _compared_with_checkpointing(trial: Trial, plain: tuple, again: tuple, *, reseeds: bool) -> Finding:
    allowed = steps(trial.dtype, roundings=ROUNDINGS, terms=trial.case.seq_len)
    errors = {name: _gradient_error(again[0][name], gradient) for name, gradient in plain[0].items()}
    wrong = [f"gradient of {name} is off by {error:.2g}" for name, error in errors.items() if not error <= allowed]
    wrong += [f"{name} is another afterwards" for name in _changed(plain[1], again[1])]
    wrong += [] if torch.equal(plain[3], again[3]) else ["forward leaves the generator in another state"]
    wrong += [] if plain[2] and again[2] else ["backward draws random numbers"]
    wrong += ["it sets the seed"] if reseeds else []
    detail = (
        f"{'; '.join(wrong[:3]) or 'gradients, buffers, counters and generator are the same'} (budget {allowed:.2g})"
    )
    return at_most(len(wrong), 0, "findings", detail)


class _Checkpointed(nn.Module):
    """A layer that is computed again in backward, as in TinyLM."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.module, x, use_reentrant=True, preserve_rng_state=True)


def _gradient_error(found: Tensor | None, expected: Tensor | None) -> float:
    if found is None or expected is None:
        return 0.0 if found is expected else float("inf")
    return error_of(found, expected)


def _rng(trial: Trial) -> Tensor:
    return torch.cuda.get_rng_state() if trial.case.device == "cuda" else torch.get_rng_state()


def state_of(module: nn.Module) -> dict[str, object]:
    """Return buffers, counters and other attributes of a module and its parts, with the length of what has one."""
    known, found = {*vars(nn.Module()), "training"}, {}
    for path, part in module.named_modules():
        path = path.removeprefix("module").removeprefix(".")
        for name, value in (*part.named_buffers(recurse=False), *vars(part).items()):
            if name in known or "checkpoint" in name:
                continue
            if isinstance(value, Tensor):
                found[f"{path}.{name}"] = value.detach().clone()
            elif isinstance(value, bool | int | float | str | None):
                found[f"{path}.{name}"] = value
            elif isinstance(value, Sized):
                found[f"length of {path}.{name}"] = len(value)
    return found


def _changed(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return [name for name in sorted({*before, *after}) if not _equal(before.get(name), after.get(name))]


def _moved(before: dict[str, object], after: dict[str, object]) -> dict[str, object]:
    """Return what a call has left of the state that it changed."""
    return {name: after.get(name) for name in _changed(before, after)}


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and one == other


def gradients(trial: Trial) -> Finding:
    """Train a few steps, and look for parameters that never get a finite gradient that is not zero."""
    model = trained_model(trial.case, layers=LAYERS, vocab=VOCAB)
    vocab = trial.case.model.vocab if trial.case.model.brings == "model" else VOCAB
    generator = torch.Generator().manual_seed(trial.case.seed)
    shape = (trial.case.batch, trial.case.seq_len + 1)
    tokens = torch.randint(vocab, shape, generator=generator).to(trial.case.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=trial.case.lr)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    strangers = _trained_by_nobody(trial)
    if strangers:
        return at_most(len(strangers), 0, "tensors", f"{UNKNOWN}: {'; '.join(strangers[:3])}")
    reached, not_finite = set(), set()
    for _ in range(STEPS):
        model.zero_grad(set_to_none=True)
        training.next_token_loss(model, tokens).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                (reached if parameter.grad.any() else set()).add(name)
                (set() if parameter.grad.isfinite().all() else not_finite).add(name)
        optimizer.step()
        trial.alive()
    bad = sorted(not_finite | (wanted - reached))
    said = ", ".join(name.replace(".inner", "") for name in bad[:6])
    detail = f"of {len(wanted)}, in {STEPS} steps: {said or 'all get a finite gradient that is not zero'}"
    return at_most(len(bad), 0, "parameters", detail)


UNKNOWN = "a gradient reaches what is no parameter of it, so that no optimizer, cast or move does"


def _trained_by_nobody(trial: Trial) -> list[str]:
    """Return the leaves of a backward that the module does not know, as layers in a plain list are, by their shapes."""
    module = trial.fresh()
    output, entered = trial.run(module, trial.input(1, min(trial.case.seq_len, SHORT)))
    known = {id(tensor) for tensor in (*module.parameters(), *module.buffers(), entered)}
    return sorted({f"shape {tuple(leaf.shape)}" for leaf in _leaves(output) if id(leaf) not in known})


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """Yield the tensors in which the backward of an output ends."""
    todo, seen = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        todo += [behind for behind, _ in node.next_functions]


def inputs(trial: Trial) -> Finding:
    """See that it does not write into its input, keeps neither that nor what it made of it, and does not grow.

    What lives before, a million objects of imported modules, is left out of each look: that would take the seconds.
    """
    gc.collect()
    gc.freeze()
    try:
        return _left_behind(trial)
    finally:
        gc.unfreeze()


def _left_behind(trial: Trial) -> Finding:
    module, given, wrong = trial.fresh(), trial.input(1, trial.case.seq_len), []
    entering = given.clone()
    kept = StorageWeakRef(entering.untyped_storage())
    with torch.no_grad():  # nothing is kept for a backward: what is kept is kept by the module
        trial.call(module, entering)
    wrong += [] if torch.equal(entering, given) else ["it writes into its input"]
    del entering
    gc.collect()
    wrong += [] if kept.expired() else ["it keeps its input alive"]
    graph = _kept_graph(trial, module, given)
    if graph:
        wrong.append(f"it keeps {graph:,} bytes of a call, with the graph behind them")
    sizes = [_size(trial, module, given) for _ in range(2 + CALLS)][1:]
    if all(later > sooner for sooner, later in zip(sizes, sizes[1:], strict=False)):
        wrong.append(f"it holds {sizes[-1] - sizes[0]:,} more bytes or entries after {CALLS} more calls")
    return at_most(len(wrong), 0, "findings", "; ".join(wrong) or "not written, not kept, nothing grows")


def _kept_graph(trial: Trial, module: nn.Module, given: Tensor) -> int:
    """Return the bytes that stay, with their graph, of a call whose output is gone, if they are many.

    What is as large as a tenth of the output is an activation; less may be a loss that a train step fetches later.
    """
    before = set(_of_graphs())
    output, entered = trial.run(module, given)
    large = output.untyped_storage().nbytes() // 10
    del output, entered
    gc.collect()
    held = sum(size for storage, size in _of_graphs().items() if storage not in before)
    return held if held > large else 0


def _of_graphs() -> dict[int, int]:
    """Return the bytes of all tensors that a graph stands behind, by storage."""
    return {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors() if tensor.grad_fn is not None}


def _size(trial: Trial, module: nn.Module, given: Tensor) -> int:
    """Call it forward and backward, and return the bytes of all tensors and the entries of the module's containers."""
    outcome(trial, module, given)
    module.zero_grad(set_to_none=True)
    gc.collect()
    held = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors()}
    state = state_of(module)
    return sum(held.values()) + sum(value for name, value in state.items() if name.startswith("length of "))


def _tensors() -> list[Tensor]:
    return [found for found in gc.get_objects() if issubclass(type(found), Tensor) and found.layout == torch.strided]


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor of shapes alone
        return 0
