"""The check of a layer that is computed again in backward: the same output, gradients, state and random numbers."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nsa_lib.worker.preflight.error_budget import steps
from nsa_lib.worker.preflight.finding import Finding, at_most, not_judged
from nsa_lib.worker.preflight.own.numbers import ROUNDINGS, error_of
from nsa_lib.worker.preflight.own.state import changed, shared_state_of, state_of
from nsa_lib.worker.preflight.own.trial import Trial

BY_CHANCE = 4
"""How many times what two runs with the same random numbers differ by, others may.

On a GPU sums have no fixed order."""


def checkpointing(trial: Trial) -> Finding:
    """Hold output, gradients and state with checkpointing against those without.

    Nothing may depend on random numbers: no step could be taken again.
    """
    is_model = trial.case.model.brings == "model"
    if is_model and not trial.fresh().can_checkpoint:
        return not_judged("the model has no gradient_checkpointing_enable", required=False)
    first, plain, again = (_pass(trial, on) for on in (False, False, True))
    wrong = _differences(trial, first, plain, again)
    wrong += [] if plain.same_rng and again.same_rng else ["backward draws random numbers"]
    wrong += ["it sets the seed"] if _reseeds(trial, plain.drawn) else []
    wrong += ["its output is another with other random numbers"] if _is_by_chance(trial) else []
    said = "; ".join(wrong[:3]) or "output, gradients, buffers, counters and generator are the same"
    return at_most(len(wrong), 0, "findings", f"{said} (budget {_allowed(trial):.2g})")


class Passed(NamedTuple):
    """What one forward and backward came to."""

    values: dict[str, Tensor | None]
    """The output, and the gradients by the names of their parameters."""
    moved: dict[str, object]
    """What it left of the state that it changed; of what is shared by all, by how much."""
    drawn: Tensor
    """The generator behind forward."""
    same_rng: bool
    """Whether backward left it there."""


def _pass(trial: Trial, on: bool) -> Passed:
    module, given, own = trial.fresh(), trial.input(1, trial.case.seq_len), trial.case.model.own
    if trial.case.model.brings == "model":
        module.grad_checkpointing = on
    elif on:
        module = _Checkpointed(module)
    before, shared = state_of(module), shared_state_of(module, own)  # switching it on may set more than its layers have
    torch.manual_seed(trial.case.seed + 4)
    output, entered = trial.run(module, given)
    drawn = _rng(trial)
    output.backward(torch.ones_like(output))
    same_rng = torch.equal(drawn, _rng(trial))
    values = {f"gradient of {n.removeprefix('module.')}": p.grad for n, p in _trained(module)}
    values |= {"gradient of input": None if entered is None else entered.grad, "output": output.detach()}
    after, shared_after = state_of(module), shared_state_of(module, own)
    moved = {name: after.get(name) for name in changed(before, after)}
    moved |= {name: shared_after[name] - shared.get(name, 0) for name in changed(shared, shared_after)}
    return Passed(values, moved, drawn, same_rng)


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def _differences(trial: Trial, first: Passed, plain: Passed, again: Passed) -> list[str]:
    """Return what a pass with checkpointing has otherwise; not what two without it have otherwise, such as a time."""
    errors = {name: _error(again.values[name], value) for name, value in plain.values.items()}
    wrong = [f"{name} is off by {error:.2g}" for name, error in errors.items() if not error <= _allowed(trial)]
    by_itself = set(changed(first.moved, plain.moved))
    wrong += [f"{name} is another afterwards" for name in changed(plain.moved, again.moved) if name not in by_itself]
    return wrong + ([] if torch.equal(plain.drawn, again.drawn) else ["forward leaves the generator in another state"])


def _allowed(trial: Trial) -> float:
    return steps(trial.dtype, roundings=ROUNDINGS, terms=trial.case.seq_len)


def _error(found: Tensor | None, expected: Tensor | None) -> float:
    if found is None or expected is None:
        return 0.0 if found is expected else float("inf")
    return error_of(found, expected)


def _reseeds(trial: Trial, left: Tensor) -> bool:
    """Return whether a call leaves the generator where another call, after another seed, left it."""
    _output_after(trial, trial.fresh(), trial.case.seed + 5)
    return torch.equal(_rng(trial), left)


def _is_by_chance(trial: Trial) -> bool:
    """Return whether other random numbers, of whichever generator, make another output."""
    module = trial.fresh()
    first, same, other = (_output_after(trial, module, trial.case.seed + n) for n in (5, 5, 6))
    return error_of(other, first) > BY_CHANCE * error_of(same, first)


@torch.no_grad()
def _output_after(trial: Trial, module: nn.Module, seed: int) -> Tensor:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return trial.run(module, trial.input(1, trial.case.seq_len))[0]


class _Checkpointed(nn.Module):
    """A layer that is computed again in backward, as in TinyLM."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.entered_by = module, module.entered_by

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.module, x, use_reentrant=True, preserve_rng_state=True)


def _rng(trial: Trial) -> Tensor:
    return torch.cuda.get_rng_state() if trial.case.device == "cuda" else torch.get_rng_state()
