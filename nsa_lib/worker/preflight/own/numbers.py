"""Checks of outputs and gradients as numbers: against itself in a wider dtype, in a second run, at extremes.

The error budget of code that nobody here knows is measured: input and parameters are moved by one rounding of the run's
dtype, in the wider one, and for gradients each operation too; what that does is what rounding can do. Code with many
roundings on the way is allowed a few times that. Nothing is allowed half of its own size, so that zeros never pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nsa_lib.contract.figures import largest
from nsa_lib.subject.own.casting import in_dtype
from nsa_lib.subject.own.loading import OwnError, called
from nsa_lib.worker.preflight.error_budget import steps, unit
from nsa_lib.worker.preflight.finding import Finding, at_most, not_judged, within_budget
from nsa_lib.worker.preflight.own.precision import dtype_name, widest
from nsa_lib.worker.preflight.own.rounded import Rounded
from nsa_lib.worker.preflight.own.trial import LENGTHS, Trial, outcome

LONGEST = 2048
"""The most tokens of which it is computed in a wider dtype."""

ROUNDINGS = 32
"""In a row, on the longest way through an attention; a model has them a layer."""

AMPLIFIED = 8
"""How many times what one rounding of everything does its own roundings may do."""

DRAWS = 4
"""In how many runs every operation is rounded at random. Of a single figure, its own error is above AMPLIFIED times the
mean of these in 1 of 700 (Student's t of 4 degrees), in 1 of 13 with one run; of larger tensors never."""

MOST_ALLOWED = 0.5

NOTHING = 16 * unit(torch.float32)
"""A gradient that is this little of the output's size over the parameter's is a sum whose terms cancel, as that of a
bias of keys is: it must be as little in the run's dtype, in roundings of the terms."""

LARGE_LOGIT = 40.0
"""Standard deviation of the logits on the enlarged input, with torch's own initialization: some exceed 100."""


def self_error(trial: Trial) -> Finding:
    """Hold output and gradients against its own in float64, or in float32 where it cannot run float64."""
    wide = widest(trial)
    if wide is None:
        return not_judged(
            f"it runs neither in float64 nor in float32, so {trial.case.dtype} has no judge", required=True
        )
    narrow = trial.dtype if trial.dtype != wide else torch.float32
    given = trial.input(1, min(trial.case.seq_len, LONGEST))
    exact = outcome(trial, trial.fresh(wide), given)
    budget = budgets(trial, given, wide, narrow, exact)
    if narrow == wide:  # float32 alone: the same numbers by other sums, beside another sequence
        pair = torch.cat([given, given])
        found = {name: value[:1] if name == "output" else value / 2 for name, value in _in_pair(trial, pair).items()}
        return _compared(found, exact, budget, f"{trial.case.dtype} alone runs: against itself in a batch of two")
    found = outcome(trial, trial.fresh(narrow), given)
    return _compared(found, exact, budget, f"{dtype_name(narrow)} against its own {dtype_name(wide)}")


def _in_pair(trial: Trial, pair: Tensor) -> dict[str, Tensor]:
    module = trial.fresh()
    output, _ = trial.run(module, pair)
    generator = torch.Generator().manual_seed(trial.case.seed + 2)
    cotangent = torch.randn(output[:1].shape, generator=generator).to(trial.dtype).to(output.device)
    output.backward(cotangent.expand_as(output).contiguous())
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **{f"gradient of {n.removeprefix('inner.')}": g for n, g in gradients.items()}}


def budgets(
    trial: Trial, given: Tensor, wide: torch.dtype, narrow: torch.dtype, exact: dict[str, Tensor]
) -> dict[str, float]:
    """Return the relative error that each tensor of an outcome is allowed in the narrow dtype."""
    module = trial.fresh(wide)
    sizes = {f"gradient of {name.removeprefix('inner.')}": rms(p) for name, p in module.named_parameters()}
    layers = trial.case.model.layers if trial.case.model.brings == "model" else 1
    terms = given.shape[1] + trial.case.model.nsa.dim
    own = steps(narrow, roundings=ROUNDINGS * layers, terms=terms * layers)
    moved = _errors_when_moved(trial, given, module, unit(narrow), exact)
    # A few figures that every weight of a map meets, as those that mix heads, are sums of T * T terms between them.
    pairs = {f"gradient of {name.removeprefix('inner.')}": p.numel() for name, p in module.named_parameters()}
    sums = {name: steps(narrow, roundings=0, terms=given.shape[1] ** 2 // max(1, n)) for name, n in pairs.items()}
    allowed = {
        name: min(MOST_ALLOWED, AMPLIFIED * value + max(own, sums.get(name, 0.0))) for name, value in moved.items()
    }
    for name in sizes.keys() & allowed.keys():
        gradient, usual = float(exact[name].double().norm()), float(exact["output"].double().norm()) / sizes[name]
        if 0 < gradient <= NOTHING * usual:
            allowed[name] = own * usual / gradient
    return allowed


def _errors_when_moved(
    trial: Trial, given: Tensor, module: nn.Module, u: float, exact: dict[str, Tensor]
) -> dict[str, float]:
    """Return by how much each tensor is off where input and parameters are rounded at random.

    A gradient may be little of what it is a sum of, and a gate the difference of long sums: for gradients each
    operation on the way is rounded besides, a few times, for a single figure may by chance be hardly off in one. An
    output gets no such allowance: that would let it be summed in 16 bits.
    """
    generator = torch.Generator().manual_seed(trial.case.seed + 3)

    def moved(x: Tensor) -> Tensor:
        sign = torch.randint(2, x.shape, generator=generator).to(x.device)
        return x * (1 + u * (2 * sign - 1).to(x.dtype))

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(moved(parameter))
    shaken = outcome(trial, module, given, moved)
    found = {name: error_of(shaken[name], value) for name, value in exact.items()}
    squares = dict.fromkeys(exact, 0.0)
    for draw in range(DRAWS):
        with Rounded(u, trial.case.seed + draw):
            shaken = outcome(trial, module, given, moved)
        for name, value in exact.items():
            squares[name] += error_of(shaken[name], value) ** 2 / DRAWS
        trial.alive()
    return {name: error if name == "output" else max(error, math.sqrt(squares[name])) for name, error in found.items()}


def same_bits(trial: Trial) -> Finding:
    """Run it twice. That both are the same is required if it says `deterministic`, else the difference is shown."""
    given, module = trial.input(1, trial.case.seq_len), trial.fresh()
    first, second = outcome(trial, module, given), outcome(trial, module, given)
    differ = [name for name, value in first.items() if not torch.equal(value, second[name])]
    size = largest([error_of(second[name], first[name]) for name in differ]) if differ else 0.0
    promised = getattr(module, "deterministic", False)
    said = "it says deterministic" if promised else "it does not say deterministic: shown"
    detail = f"{len(differ)} of {len(first)} tensors differ between two runs; {said}"
    return Finding(float(f"{size:.3g}"), 0, "", detail, not differ, required=promised)


def large(trial: Trial) -> Finding:
    """Enlarge the input until logits exceed 100: output and gradients must be finite."""
    factor = math.sqrt(3 * LARGE_LOGIT)  # torch's own initialization makes logits of a third of the input's variance
    given = trial.input(1, trial.case.seq_len)
    found = outcome(trial, trial.fresh(), given, lambda x: factor * x)
    bad = [name for name, value in found.items() if not value.isfinite().all()]
    return at_most(len(bad), 0, "tensors", f"not finite with the input {factor:.1f} times: {', '.join(bad) or 'none'}")


def empty(trial: Trial) -> Finding:
    """Run one token, a few, and other lengths: output and gradients must be finite.

    So must the output be where a row that enters is zeros, as padding is, and for every token of a vocabulary.
    """
    longest = trial.case.seq_len
    lengths = sorted({n for n in (*LENGTHS, longest - 1) if 0 < n <= longest})
    bad = []
    for length in lengths:
        try:
            found = outcome(trial, trial.fresh(), trial.input(1, length))
        except OwnError as error:
            return Finding(f"length {length}", "finite", "", str(error), False)
        except (Exception, SystemExit) as error:
            error.add_note(f"on a sequence of {length} tokens")
            raise
        bad += [f"{name} at {length}" for name, value in found.items() if not value.isfinite().all()]
    bad += _not_finite_for(trial)
    detail = f"lengths {', '.join(map(str, lengths))}; not finite: {', '.join(bad) or 'none'}"
    return at_most(len(bad), 0, "tensors", detail)


@torch.no_grad()
def _not_finite_for(trial: Trial) -> list[str]:
    """Return rows and tokens that make an output that is not finite."""
    module, length = trial.fresh(), trial.case.seq_len

    def zeros(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, [0, length // 2]] = 0
        return x

    output, _ = trial.run(module, trial.input(1, length), zeros)
    bad = [] if output.isfinite().all() else ["output for a row of zeros"]
    for given in trial.vocabulary():
        fine = trial.call(module, given).isfinite().flatten(2).all(-1)[0]
        if not fine.all():
            return [*bad, f"output for token {int(given[0, int((~fine).nonzero()[0])])}"]
        trial.alive()
    return bad


def reference(trial: Trial) -> Finding:
    """Hold output and gradients against the reference that it brings, in float64 and with its own weights."""
    module = trial.fresh()
    judge = _reference_of(trial, module)
    if judge is None:
        return not_judged("it brings none", required=False)
    given = trial.input(1, min(trial.case.seq_len, LONGEST))
    exact = outcome(trial, judge, given)
    budget = budgets(trial, given, widest(trial) or trial.dtype, trial.dtype, outcome(trial, trial.fresh(), given))
    found = outcome(trial, module, given)
    return _compared(
        {n: v for n, v in found.items() if n in exact}, exact, budget, "against its own reference, float64"
    )


def _reference_of(trial: Trial, module: nn.Module) -> nn.Module | None:
    """Return the reference in float64 with the weights of the module: a module, what makes one, or a method of x."""
    inner = getattr(module, "inner", None)
    told = getattr(inner, "reference", None)
    if told is None:
        return None
    if not isinstance(told, nn.Module) and getattr(told, "__self__", None) is inner:
        wide = trial.fresh(torch.float64)
        wide.inner.forward = wide.inner.reference
        return wide
    made = told if isinstance(told, nn.Module) else called(trial.case.model.own, told)
    made.load_state_dict(inner.state_dict())
    judge = trial.fresh(torch.float64)
    judge.inner = in_dtype(made, torch.float64).to(trial.case.device)
    return judge


def _compared(found: dict[str, Tensor], exact: dict[str, Tensor], budget: dict[str, float], how: str) -> Finding:
    errors = {name: error_of(value, exact[name]) for name, value in found.items() if name in exact}
    finding = within_budget(errors, {name: budget[name] for name in errors})
    return Finding(finding.measured, finding.limit, "", f"{finding.detail}; {how}", finding.holds)


def error_of(found: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference over that of `exact`; 0 where both are the same, Inf where only that is 0."""
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    if torch.equal(found, exact):
        return 0.0
    size = float(exact.norm())
    return float((found - exact).norm()) / size if size else math.inf


def rms(x: Tensor) -> float:
    """Return the root mean square of the entries, or 1 where all are 0."""
    size = float(x.detach().double().square().mean().sqrt())
    return size if size > 0 else 1.0
