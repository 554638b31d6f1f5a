"""The check of a backward against differences of its own forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from nsa_lib.contract.figures import largest, name_of_largest
from nsa_lib.worker.preflight.error_budget import unit
from nsa_lib.worker.preflight.finding import Finding, at_most, not_judged
from nsa_lib.worker.preflight.own.numbers import rms
from nsa_lib.worker.preflight.own.precision import dtype_name, rounding, widest
from nsa_lib.worker.preflight.own.trial import Change, Trial, outcome

DIFFERENCE_TOKENS = 512

DIRECTIONS = 2

STEPS = {torch.float64: (1e-5, 1e-3, 1e-7, 1e-2), torch.float32: (2e-2, 1e-1)}
"""Moves along a direction, over the size of what is moved, until one agrees: a large one may choose other blocks."""

DIFFERENCE_LIMIT = {torch.float64: 1e-4, torch.float32: 0.1}
"""Error of a derivative along a random direction, over what it is typically. Differences of a smooth function are off
by the square of the move, 1e-10 at 1e-5; those of one with kinks, as a relu has, by the share of rows that cross one.
"""

COARSE_STEPS, COARSE_LIMIT = (1e-2, 1e-3), 1e-3
"""The same where a part is computed in float32 though it is given float64: in that, smaller moves drown."""

NOISE = 4
"""Roundings of the code itself, over the output, that a difference may show."""


def finite_difference(trial: Trial) -> Finding:
    """Hold the backward against differences of the forward, along random directions of the input and each parameter."""
    dtype = widest(trial)
    if dtype is None:
        return not_judged("it runs neither in float64 nor in float32: differences would be rounding", required=True)
    module, given = trial.fresh(dtype), trial.input(2, min(trial.case.seq_len, DIFFERENCE_TOKENS))
    exact, noise = outcome(trial, module, given), NOISE * rounding(trial, dtype)
    is_coarse = dtype == torch.float64 and noise > unit(torch.float32)
    moves, limit = (COARSE_STEPS, COARSE_LIMIT) if is_coarse else (STEPS[dtype], DIFFERENCE_LIMIT[dtype])
    look = partial(_difference, trial, module, given, exact, noise)
    errors = {}
    for name in exact:
        if name != "output":
            errors[name] = largest(_least(partial(look, name, seed), moves, limit) for seed in range(DIRECTIONS))
            trial.alive()
    worst = name_of_largest(errors)
    detail = f"{worst} is off most, of {len(errors)}; {DIRECTIONS} directions each, in {dtype_name(dtype)}"
    return at_most(float(f"{errors[worst]:.3g}"), limit, "", detail)


def _least(look: Callable[[float], float], moves: Sequence[float], limit: float) -> float:
    """Return the least error of a few moves, the first one that is within the limit if there is one."""
    least = math.inf
    for h in moves:
        least = min(least, look(h))
        if least <= limit:
            break
    return least


def _difference(
    trial: Trial,
    module: nn.Module,
    given: Tensor,
    exact: dict[str, Tensor],
    rounded: float,
    name: str,
    seed: int,
    h: float,
) -> float:
    """Return by how much the gradient of one tensor misses the difference along a direction, over its usual size."""
    generator = torch.Generator().manual_seed(trial.case.seed + 10 + seed)
    gradient = exact[name].double().cpu()
    direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
    parameters = {f"gradient of {n.removeprefix('inner.')}": p for n, p in module.named_parameters()}
    move = _moved_parameter(parameters[name]) if name in parameters else _moved_input
    ahead, size = move(trial, module, given, h, direction)
    behind, _ = move(trial, module, given, h, -direction)
    measured = (ahead - behind) / (2 * size)
    noise = rounded * float(exact["output"].double().norm()) / size
    typical = max(float(gradient.norm()), abs(measured))
    off = abs(measured - float((gradient * direction).sum()))
    return 0.0 if typical <= noise else max(0.0, off - noise) / typical


def _moved_parameter(parameter: nn.Parameter) -> Callable[..., tuple[float, float]]:
    def along(trial: Trial, module: nn.Module, given: Tensor, h: float, direction: Tensor) -> tuple[float, float]:
        kept, size = parameter.detach().clone(), h * rms(parameter)
        with torch.no_grad():
            parameter.add_((size * direction).to(parameter.dtype).to(parameter.device))
            found = _along_cotangent(trial, module, given)
            parameter.copy_(kept)
        return found, size

    return along


def _moved_input(trial: Trial, module: nn.Module, given: Tensor, h: float, direction: Tensor) -> tuple[float, float]:
    sizes: list[float] = []

    def enter(x: Tensor) -> Tensor:
        sizes.append(h * rms(x))
        return x + (sizes[-1] * direction).to(x.dtype).to(x.device)

    with torch.no_grad():
        return _along_cotangent(trial, module, given, enter), sizes[-1]


def _along_cotangent(trial: Trial, module: nn.Module, given: Tensor, change: Change = lambda x: x) -> float:
    output, _ = trial.run(module, given, change)
    generator = torch.Generator().manual_seed(trial.case.seed + 2)
    cotangent = torch.randn(output.shape, generator=generator).to(trial.dtype)
    return float((output.double().cpu() * cotangent.double()).sum())
