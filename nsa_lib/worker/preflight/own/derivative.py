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
from nsa_lib.worker.preflight.own.numbers import LONGEST, rms
from nsa_lib.worker.preflight.own.precision import dtype_name, rounding, widest
from nsa_lib.worker.preflight.own.trial import SHORT, Change, Trial, outcome

DIFFERENCE_TOKENS = 512

SEQUENCES = 2

DIRECTIONS = 2

STEPS = {torch.float64: (1e-5, 1e-3, 1e-7, 1e-2), torch.float32: (2e-2, 1e-1)}
"""Moves along a direction, over the size of what is moved, until one agrees: a large one may choose other blocks."""

DIFFERENCE_LIMIT = {torch.float64: 1e-4, torch.float32: 0.1}
"""Error of a derivative along a random direction, over what it is typically. Differences of a smooth function are off
by the square of the move, 1e-10 at 1e-5; those of one with kinks, as a relu has, by the share of rows that cross one.
"""

COARSE_STEPS, COARSE_LIMIT = (1e-2, 1e-3, 1e-4), 1e-3
"""The same where a part is computed in float32 though it is given float64, or in less: smaller moves drown."""

DROWNED = 100
"""Roundings, over a move, among which it would drown."""

NOISE = 4
"""Roundings of the code itself, over the output, that a difference may show."""


def finite_difference(trial: Trial) -> Finding:
    """Hold the backward against differences of the forward, along random directions of the input and each parameter.

    Where sequences are longer, or the run's batch is larger, all of them are moved at once there too: that is cheap.
    """
    dtype = widest(trial)
    if dtype is None:
        return not_judged("it runs neither in float64 nor in float32: differences would be rounding", required=True)
    module, noise = trial.fresh(dtype), NOISE * rounding(trial, dtype)
    is_coarse = dtype == torch.float64 and noise > unit(torch.float32)
    coarse = [h for h in COARSE_STEPS if h >= DROWNED * noise] or COARSE_STEPS[:1]
    moves, limit = (coarse, COARSE_LIMIT) if is_coarse else (STEPS[dtype], DIFFERENCE_LIMIT[dtype])
    errors: dict[str, float] = {}
    for shape in _shapes(trial):
        given = trial.input(*shape, seed=2)
        exact = outcome(trial, module, given)
        tensors = [name for name in exact if name != "output"]
        together = {f"gradient of all in {shape[0]} sequences of {shape[1]} tokens": tensors}
        for name, moved in (together if errors else {name: [name] for name in tensors}).items():
            look = partial(_difference, trial, module, given, exact, noise, moved)
            errors[name] = largest(_least(partial(look, seed), moves, limit) for seed in range(DIRECTIONS))
            trial.alive()
    worst = name_of_largest(errors)
    detail = f"{worst} is off most, of {len(errors)}; {DIRECTIONS} directions each, in {dtype_name(dtype)}"
    return at_most(float(f"{errors[worst]:.3g}"), limit, "", detail)


def _shapes(trial: Trial) -> list[tuple[int, int]]:
    """Return how many sequences of how many tokens are looked at: first where each tensor is moved by itself."""
    length, batch = trial.case.seq_len, trial.case.batch
    shapes = [(SEQUENCES, min(length, DIFFERENCE_TOKENS))]
    shapes += [(1, min(length, LONGEST))] if length > DIFFERENCE_TOKENS else []
    return shapes + ([(batch, min(length, SHORT))] if batch > SEQUENCES else [])


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
    names: Sequence[str],
    seed: int,
    h: float,
) -> float:
    """Return by how much the gradients of some tensors miss the difference along a direction, over their usual size."""
    directions = _directions(module, {name: exact[name] for name in names}, trial.case.seed + 10 + seed)
    ahead, sizes = _moved(trial, module, given, h, directions)
    behind, _ = _moved(trial, module, given, -h, directions)
    gradients = {name: sizes[name] * exact[name].double().cpu() for name in names}
    measured, noise = (ahead - behind) / 2, rounded * float(exact["output"].double().norm())
    typical = max(math.hypot(*(float(gradient.norm()) for gradient in gradients.values())), abs(measured))
    off = abs(measured - sum(float((gradient * directions[name]).sum()) for name, gradient in gradients.items()))
    return 0.0 if typical <= noise else max(0.0, off - noise) / typical


def _directions(module: nn.Module, gradients: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return random directions; the row of padding in an embedding stays, which has no gradient by torch's own rule."""
    generator, named = torch.Generator().manual_seed(seed), _named(module)
    found = {name: torch.randn(x.shape, generator=generator, dtype=torch.float64) for name, x in gradients.items()}
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            for name in found:
                if named.get(name) is part.weight:
                    found[name][part.padding_idx] = 0
    return found


def _named(module: nn.Module) -> dict[str, nn.Parameter]:
    return {f"gradient of {name.removeprefix('inner.')}": p for name, p in module.named_parameters()}


@torch.no_grad()
def _moved(
    trial: Trial, module: nn.Module, given: Tensor, h: float, directions: dict[str, Tensor]
) -> tuple[float, dict[str, float]]:
    """Return the output along its cotangent where tensors are moved, and by what their directions were multiplied.

    Sizes are those of a move ahead.
    """
    parameters = {name: parameter for name, parameter in _named(module).items() if name in directions}
    kept = {name: parameter.clone() for name, parameter in parameters.items()}
    sizes = {name: abs(h) * rms(parameter) for name, parameter in parameters.items()}

    def moved(name: str, x: Tensor) -> Tensor:
        return x + (math.copysign(sizes[name], h) * directions[name]).to(x.dtype).to(x.device)

    def enter(x: Tensor) -> Tensor:
        sizes[INPUT] = abs(h) * rms(x)
        return moved(INPUT, x) if INPUT in directions else x

    for name, parameter in parameters.items():
        parameter.copy_(moved(name, parameter))
    try:
        return _along_cotangent(trial, module, given, enter), sizes
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])


INPUT = "gradient of input"


def _along_cotangent(trial: Trial, module: nn.Module, given: Tensor, change: Change) -> float:
    output, _ = trial.run(module, given, change)
    generator = torch.Generator().manual_seed(trial.case.seed + 2)
    cotangent = torch.randn(output.shape, generator=generator).to(trial.dtype)
    return float((output.double().cpu() * cotangent.double()).sum())
