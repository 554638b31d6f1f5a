"""Judge the update of a recorded step by AdamW's rule (Loshchilov & Hutter, 2019), value and state.

The rule is applied in float64 to what was recorded: entry by entry, and then to the entries of a parameter together. An
entry may miss the rule by what rounding explains there. Over many entries rounding cancels and what is left out does
not: so weight decay, a thousandth of the update, is seen in float32, and a learning rate that is off by a few percent
in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lib.worker.attestation.records import Entries
from nsa_lib.worker.attestation.rounding import MARGIN

UPDATE_ROUNDINGS = 16
"""Operations of an update, each rounded once in float32 or better."""


@dataclass(frozen=True)
class AdamW:
    """The settings that the rule is judged by: those asked for, and torch's defaults."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2


def in_words(ratio: float | None) -> str:
    """Return in words how far an update is from the rule; `ratio` as in UpdateFound."""
    known = ratio is not None and math.isfinite(ratio)
    times = f"{ratio:.3g} times what rounding explains" if known else "not finite, or not made at all"
    return f"its distance from AdamW's rule is {times}"


@dataclass(frozen=True)
class UpdateFound:
    """What was found of an update."""

    entries: int
    """Entries compared, each of them value and state."""
    moved: int
    """Entries whose update is twice what rounding explains, or more: no update is found there, nor one of half the
    size."""
    wrong: dict[str, float | None]
    """Parameters in which the rule is broken, with the largest distance from it, over what rounding explains."""
    unmoved: tuple[str, ...]
    """Parameters none of whose entries had to move: there only the state could be judged."""

    @property
    def ok(self) -> bool:
        """Whether every entry is what the rule makes of it."""
        return not self.wrong


def judge_update(
    entries: Mapping[str, Entries],
    rule: AdamW,
    step: int | None = None,
    *,
    device: str | torch.device = "cpu",
    alive: Callable[[], None] = lambda: None,
) -> UpdateFound:
    """Judge the update of the entries that were followed, on a device.

    It must be the `step`-th of the training, from 1, if that is known: state that was lost on the way begins anew.

    The update is made in float32 or better, and what is stored is rounded once to its dtype. An implementation may
    use the moments as they are stored: their rounding is allowed in the update.
    """
    count = moved = 0
    wrong: dict[str, float | None] = {}
    unmoved = []
    for name, found in entries.items():
        alive()
        if not found.trained:
            continue
        found = found.to(device)
        moving, ratio = _update(found, rule, step)
        count, moved = count + found.before["parameter"].numel(), moved + moving
        if not ratio <= 1:
            wrong[name] = ratio if math.isfinite(ratio) else None
        if not moving:
            unmoved.append(name)
    return UpdateFound(count, moved, wrong, tuple(unmoved))


@dataclass(frozen=True)
class _Made:
    """What the rule makes of the entries of a parameter, in float64, by name: `parameter`, `exp_avg`, `exp_avg_sq`."""

    step: float
    before: dict[str, Tensor]
    right: dict[str, Tensor]
    gradient: Tensor
    change: Tensor
    """Of the parameter, without weight decay."""


def _made(found: Entries, rule: AdamW) -> _Made:
    p, g = found.before["parameter"].double(), found.gradient.double()
    m, v = (found.before[n].double() if n in found.before else torch.zeros_like(p) for n in ("exp_avg", "exp_avg_sq"))
    step = float(found.before.get("step", torch.zeros(()))) + 1
    b1, b2 = rule.betas
    m_new, v_new = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    change = rule.lr * (m_new / (1 - b1**step)) / ((v_new / (1 - b2**step)).sqrt() + rule.eps)
    right = {"parameter": p * (1 - rule.lr * rule.weight_decay) - change, "exp_avg": m_new, "exp_avg_sq": v_new}
    return _Made(step, {"parameter": p, "exp_avg": m, "exp_avg_sq": v}, right, g, change)


def _update(found: Entries, rule: AdamW, known_step: int | None) -> tuple[int, float]:
    """Return how many entries had to move, and the largest distance from the rule over what rounding explains."""
    if not _is_whole(found):
        return 0, math.inf
    made, dtype = _made(found, rule), found.gradient.dtype
    explained, steady = _explained(made, rule, dtype), _steady(made, rule, dtype)
    ratios = [_farthest(found, made, explained, known_step)]
    for name, right in made.right.items():
        ratios.append(_together(found.after[name], right, explained[name], steady[name]))
    p, p_new = made.before["parameter"], made.right["parameter"]
    allowed = explained["parameter"] + _half_ulp(p_new, found.after["parameter"].dtype)
    return int(((p_new - p).abs() > 2 * allowed).sum()), max(ratios)


def farthest(found: Entries, rule: AdamW, known_step: int | None) -> float:
    """Return the largest distance of an entry from the rule, over what rounding explains; inf if none was made.

    It must be the `known_step`-th update, from 1, if that is known.
    """
    if not _is_whole(found):
        return math.inf
    made = _made(found, rule)
    return _farthest(found, made, _explained(made, rule, found.gradient.dtype), known_step)


def _is_whole(found: Entries) -> bool:
    """Return whether there was a gradient, and there is state."""
    return found.gradient is not None and {"exp_avg", "exp_avg_sq", "step"} <= set(found.after)


def _farthest(found: Entries, made: _Made, explained: Mapping[str, Tensor], known_step: int | None) -> float:
    if not float(found.after["step"]) == made.step == (known_step or made.step):
        return math.inf
    ratios = []
    for name, right in made.right.items():
        after = found.after[name]
        distance = (after.double() - right).abs()
        ratio = torch.where(distance == 0, 0.0, distance / (explained[name] + _half_ulp(right, after.dtype)))
        ratios.append(float(ratio.nan_to_num(nan=math.inf, posinf=math.inf).max()))
    return max(ratios)


def _explained(made: _Made, rule: AdamW, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what an update in float32 or better may be off by in each entry, before it is stored.

    Each operation rounds once. So does 1 - beta, by u absolutely, which counts where beta is near 1; and 1 - beta^step,
    by step times u. The moments may be used as they are stored.
    """
    u, stored = _unit(dtype), torch.finfo(dtype).eps / 2
    m, v, g = made.before["exp_avg"], made.before["exp_avg_sq"], made.gradient
    p_new, m_new, v_new = made.right.values()
    off_m = UPDATE_ROUNDINGS * u * (m.abs() + g.abs())
    off_v = UPDATE_ROUNDINGS * u * v_new + 2 * u * (v + g * g)
    relative = UPDATE_ROUNDINGS * u + _corrections(made.step, rule, u) + 2 * stored
    relative = relative + _share(off_m, m_new.abs()) + _share(off_v, v_new)
    return {"parameter": relative * made.change.abs() + 4 * u * p_new.abs(), "exp_avg": off_m, "exp_avg_sq": off_v}


def _steady(made: _Made, rule: AdamW, dtype: torch.dtype) -> dict[str, list[tuple[float, Tensor]]]:
    """Return the errors that all entries have alike, as how large they may be and along what they lie.

    They come from the numbers that all entries share: 1 - lr * weight_decay, the betas, and their powers.
    """
    u, change, g = _unit(dtype), made.change, made.gradient
    p, m, v = made.before.values()
    _, m_new, v_new = made.right.values()
    by_first, by_second = change * _share(g, m_new), change * _share(v + g * g, v_new)
    shared = UPDATE_ROUNDINGS * u + _corrections(made.step, rule, u)
    return {
        "parameter": [(u, p), (shared, change), (UPDATE_ROUNDINGS * u, by_first), (2 * u, by_second)],
        "exp_avg": [(UPDATE_ROUNDINGS * u, m), (UPDATE_ROUNDINGS * u, g)],
        "exp_avg_sq": [(UPDATE_ROUNDINGS * u, v_new), (2 * u, v), (2 * u, g * g)],
    }


def _together(after: Tensor, right: Tensor, explained: Tensor, steady: Sequence[tuple[float, Tensor]]) -> float:
    """Return how far the entries of a parameter lean along something, over what rounding explains.

    An error along a number that all share, such as a learning rate, is the same share of every entry. That of rounding
    has another sign in each: its sum grows as the root of their number. What is right is rounded to the dtype first:
    where an update is smaller than what the dtype can tell, that rounding is the same for all and no error. Then a few
    entries are off by a whole unit of the dtype, and most by nothing: MARGIN such entries are allowed as well.
    """
    off = torch.where(_may_round_to(after, right, explained), 0.0, after.double() - right.to(after.dtype).double())
    ulp = 2 * _half_ulp(right, after.dtype)
    variance = explained.square() + ulp * explained
    worst = 0.0
    for _, along in steady:
        lean = float((off * along).sum().abs())
        alike = sum(size * float((error * along).sum().abs()) for size, error in steady)
        by_turns = (variance * along.square()).sum().sqrt() + (ulp * along).abs().max()
        limit = alike + MARGIN * float(by_turns)
        if lean:
            worst = max(worst, lean / limit if limit and math.isfinite(lean) else math.inf)
    return worst


def _may_round_to(after: Tensor, right: Tensor, explained: Tensor) -> Tensor:
    """Return which entries the dtype of `after` could round to either side, and to what they are.

    In 16 bits 0.9 of one value and 0.1 of another often lie half-way between two neighbours, and an order of operations
    decides all of these alike. In a dtype as wide as the arithmetic there are no such entries: there rounding is part
    of what is explained.
    """
    if _unit(after.dtype) == torch.finfo(after.dtype).eps / 2:
        return torch.zeros_like(after, dtype=torch.bool)
    lower, upper = ((right + off).to(after.dtype) for off in (-explained, explained))
    return (lower != upper) & (lower <= after) & (after <= upper)


def _unit(dtype: torch.dtype) -> float:
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2


def _corrections(step: float, rule: AdamW, u: float) -> float:
    return sum(step * u * b**step / (1 - b**step) for b in rule.betas)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole, 0 where both are 0."""
    return torch.where(part == 0, 0.0, part / torch.where(whole == 0, torch.finfo(whole.dtype).tiny, whole))


def _half_ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return half the distance between neighbours of x in a dtype."""
    info = torch.finfo(dtype)
    # Just above a power of two, the log of what rounds to it may lie below.
    exponent = torch.floor(torch.log2(x.abs().clamp(min=info.smallest_normal)) + 1e-9)
    return 0.5 * info.eps * torch.exp2(exponent)
