"""The check of what a call does to what it is given, and of what it keeps."""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from nsa_lib.worker.preflight.finding import Finding, at_most
from nsa_lib.worker.preflight.own.state import LENGTH, shared_state_of, state_of
from nsa_lib.worker.preflight.own.trial import Trial, outcome

CALLS = 6
"""In two of which at least it must hold more than before, and in none less, to have grown."""


def inputs(trial: Trial) -> Finding:
    """See that it writes into nothing that it is given, keeps neither that nor what it made of it, and does not grow.

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
    for has_gradients in (False, True):
        with torch.set_grad_enabled(has_gradients):
            wrong += _done_to_input(trial, module, given)
    wrong += ["it writes into the gradient of its output"] if _writes_gradient(trial, module, given) else []
    graph = _kept_graph(trial, module, given)
    if graph:
        wrong.append(f"it keeps {graph:,} bytes of a call, with the graph behind them")
    sizes = [_size(trial, module, given) for _ in range(2 + CALLS)][1:]
    grown = [later - sooner for sooner, later in zip(sizes, sizes[1:], strict=False)]
    if min(grown) >= 0 and sum(more > 0 for more in grown) > 1:
        wrong.append(f"it holds {sizes[-1] - sizes[0]:,} more bytes or entries after {CALLS} more calls")
    return at_most(len(wrong), 0, "findings", "; ".join(dict.fromkeys(wrong)) or "not written, not kept, nothing grows")


def _done_to_input(trial: Trial, module: nn.Module, given: Tensor) -> list[str]:
    entering = given.clone()
    kept = StorageWeakRef(entering.untyped_storage())
    trial.call(module, entering)
    wrong = [] if torch.equal(entering, given) else ["it writes into its input"]
    del entering
    gc.collect()
    return wrong if kept.expired() else [*wrong, "it keeps its input alive"]


def _writes_gradient(trial: Trial, module: nn.Module, given: Tensor) -> bool:
    output, _ = trial.run(module, given)
    gradient = torch.ones_like(output)
    output.backward(gradient)
    module.zero_grad(set_to_none=True)
    return not bool((gradient == 1).all())


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
    """Call it forward and backward, and return the bytes of all tensors and the entries of all that it keeps."""
    outcome(trial, module, given)
    module.zero_grad(set_to_none=True)
    gc.collect()
    held = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors()}
    state = state_of(module) | shared_state_of(module, trial.case.model.own)
    return sum(held.values()) + sum(value for name, value in state.items() if name.startswith(LENGTH))


def _tensors() -> list[Tensor]:
    return [found for found in gc.get_objects() if issubclass(type(found), Tensor) and found.layout == torch.strided]


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor of shapes alone
        return 0
