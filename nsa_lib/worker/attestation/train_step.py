"""Judge a recorded training step beyond its layers: the loss, the gradients, and AdamW's update.

The loss is computed again, in float64, from the final hidden states, the head and the labels that the loop handed in,
over all positions. Which positions the step counted is read off the gradient of the hidden states: a position that is
not in the loss has none. Not judged: norms, MLPs and the embedding, but for what their gradients and updates show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nsa_lib.subject.attention.arithmetic import EXACT, Arithmetic
from nsa_lib.worker.attestation.records import Entries, StepRecord
from nsa_lib.worker.attestation.rounding import MARGIN, Comparison, compare

UPDATE_ROUNDINGS = 16
"""Operations of an update, each rounded once in float32 or better."""


@dataclass(frozen=True)
class LossFound:
    """What was found of a loss."""

    loss: float
    """Of the run, in nats."""
    exact: float
    """Of its hidden states, in float64."""
    ratio: float | None
    """Their distance, over what rounding explains."""
    positions: int
    """Positions of the step."""
    counted: int | None
    """Those among them whose hidden states got a gradient; None if no gradient was recorded."""
    parts: dict[str, Comparison] = field(default_factory=dict)
    """`d_hidden` and `d_head`: the gradients of hidden states and head."""
    not_compared: dict[str, str] = field(default_factory=dict)

    @property
    def wrong(self) -> dict[str, str]:
        """What is wrong, by name, in a sentence."""
        found = {name: part.said for name, part in self.parts.items() if not part.ok}
        if self.ratio is None or self.ratio > 1:
            found["loss"] = f"{self.loss:.6g}, but its hidden states make {self.exact:.6g}"
        if self.counted is not None and self.counted != self.positions:
            found["positions"] = f"{self.counted:,} of {self.positions:,} positions are in the loss"
        return found


@dataclass(frozen=True)
class GradientsFound:
    """Which parameters have no gradient, and of which kind of none."""

    parameters: int
    """Parameters that are trained."""
    missing: tuple[str, ...]
    not_finite: tuple[str, ...]
    zero: tuple[str, ...]
    fixed: tuple[str, ...]
    """Parameters that want no gradient."""

    @property
    def ok(self) -> bool:
        """Whether each trained parameter has a finite gradient that is not zero."""
        return not (self.missing or self.not_finite or self.zero)


@dataclass(frozen=True)
class AdamW:
    """The settings that the rule is judged by: those asked for, and torch's defaults."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2


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


class _Loss(NamedTuple):
    each: Tensor
    """Of each position, [P]."""
    d_hidden: Tensor
    """[P, dim]."""
    d_head: Tensor | None
    """[vocab, dim]; None where the hidden states are logits."""


def judge_loss(
    record: StepRecord,
    loss: float,
    *,
    chunk: int,
    device: str | torch.device = "cpu",
    alive: Callable[[], None] = lambda: None,
) -> LossFound | None:
    """Judge the loss that a recorded step returned; None if its hidden states were not recorded.

    Args:
        record: the step.
        loss: mean cross-entropy in nats that the step returned.
        chunk: tokens whose logits the run holds at a time: what it adds up in its dtype.
        device: where the judge computes.
        alive: called now and then, for whoever watches.
    """
    if record.hidden is None:
        return None
    dtype, dim, count = record.hidden.dtype, record.hidden.shape[-1], record.labels.numel()
    if record.hidden.shape[:2] != record.labels.shape:
        return LossFound(loss, math.nan, None, count, record.hidden[..., 0].numel())
    run = Arithmetic.of_run(dtype)
    right, rounded = (_loss(record, a, chunk, device, alive) for a in (EXACT, run))
    exact = float(right.each.mean())
    off = float((rounded.each.double() - right.each).square().mean().sqrt())
    off = math.hypot(off, math.sqrt(count + dim) * torch.finfo(run.wide).eps / 2 * exact)
    ratio = abs(loss - exact) / (MARGIN * off)
    ratio = ratio if math.isfinite(ratio) else None
    return LossFound(loss, exact, ratio, count, *_loss_gradients(record, right, rounded))


def _loss_gradients(
    record: StepRecord, right: _Loss, rounded: _Loss
) -> tuple[int | None, dict[str, Comparison], dict[str, str]]:
    """Return how many positions are in the loss, its gradients compared, and what could not be."""
    counted, parts, not_compared = None, {}, {}
    judged = partial(compare, dtype=record.hidden.dtype)
    if record.d_hidden is None:
        not_compared["d_hidden"] = "no gradient reached the hidden states"
    else:
        d_hidden = record.d_hidden.flatten(0, 1)
        # A position that the model rounds to nothing, far below float16, is not held against the run.
        counted = int((d_hidden.ne(0).any(dim=-1) | rounded.d_hidden.eq(0).all(dim=-1).cpu()).sum())
        # Where a token is learned, 1 - p of its label is all that is left: one logit's rounding decides.
        pair = right.d_hidden, rounded.d_hidden
        parts["d_hidden"] = judged(d_hidden, *pair, terms=_classes(record), pooled=True)
    if record.d_head is None and record.head is not None:
        not_compared["d_head"] = record.why_no_d_head
    elif record.d_head is not None:
        whole = (x.reshape(1, -1) for x in (record.d_head, right.d_head, rounded.d_head))
        parts["d_head"] = judged(*whole, terms=record.labels.numel())
    return counted, parts, not_compared


def _loss(
    record: StepRecord, arithmetic: Arithmetic, chunk: int, device: str | torch.device, alive: Callable[[], None]
) -> _Loss:
    """Compute the cross-entropy of each position and the gradients of the mean, some positions at a time."""
    keep = arithmetic.keep
    hidden = record.hidden.flatten(0, 1).to(device, arithmetic.wide)
    head = None if record.head is None else record.head.to(device, arithmetic.wide)
    labels, each, d_hidden = record.labels.flatten().to(device), [], []
    d_head = None if head is None else torch.zeros_like(head)
    for start in range(0, len(labels), chunk):
        alive()
        rows, targets = hidden[start : start + chunk], labels[start : start + chunk, None]
        logits = rows if head is None else keep(rows @ head.T)
        lse = logits.logsumexp(dim=-1, keepdim=True)
        each.append((lse - logits.gather(1, targets))[:, 0])
        d_logits = keep((logits - lse).exp().scatter_add_(1, targets, -torch.ones_like(lse)))
        d_hidden.append(d_logits if head is None else keep(d_logits @ head))
        d_head = None if head is None else keep(d_head + d_logits.T @ rows)
    scale = keep(torch.tensor(1 / len(labels), dtype=arithmetic.wide, device=device))
    return _Loss(torch.cat(each), keep(torch.cat(d_hidden) * scale), None if head is None else keep(d_head * scale))


def _classes(record: StepRecord) -> int:
    """Return how many tokens the logits tell apart."""
    return record.hidden.shape[-1] if record.head is None else len(record.head)


def judge_gradients(entries: Mapping[str, Entries]) -> GradientsFound:
    """Return which of a step's parameters have no gradient, one that is not finite, or only zeros."""
    largest = {name: found.largest_gradient for name, found in entries.items() if found.trained}
    return GradientsFound(
        parameters=len(largest),
        missing=tuple(name for name, value in largest.items() if value is None),
        not_finite=tuple(name for name, value in largest.items() if value is not None and not math.isfinite(value)),
        zero=tuple(name for name, value in largest.items() if value == 0),
        fixed=tuple(name for name, found in entries.items() if not found.trained),
    )


def judge_update(entries: Mapping[str, Entries], rule: AdamW, step: int | None = None) -> UpdateFound:
    """Judge the update of the entries that were followed, value and state, by AdamW's rule (Loshchilov & Hutter, 2019).

    It must be the `step`-th of the training, from 1, if that is known: state that was lost on the way begins anew.

    The update is made in float32 or better, and what is stored is rounded once to its dtype. An implementation may
    use the moments as they are stored: their rounding is allowed in the update.
    """
    count = moved = 0
    wrong: dict[str, float | None] = {}
    unmoved = []
    for name, found in entries.items():
        if not found.trained:
            continue
        moving, ratio = _update(found, rule, step)
        count, moved = count + found.before["parameter"].numel(), moved + moving
        if not ratio <= 1:
            wrong[name] = ratio if math.isfinite(ratio) else None
        if not moving:
            unmoved.append(name)
    return UpdateFound(count, moved, wrong, tuple(unmoved))


def _update(found: Entries, rule: AdamW, known_step: int | None) -> tuple[int, float]:
    """Return how many entries had to move, and the largest distance from the rule over what rounding explains."""
    if found.gradient is None or not {"exp_avg", "exp_avg_sq", "step"} <= set(found.after):
        return 0, math.inf
    p, g = found.before["parameter"].double(), found.gradient.double()
    m, v = (found.before[n].double() if n in found.before else torch.zeros_like(p) for n in ("exp_avg", "exp_avg_sq"))
    step = float(found.before.get("step", torch.zeros(()))) + 1
    (b1, b2), dtype = rule.betas, found.gradient.dtype
    m_new, v_new = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    change = rule.lr * (m_new / (1 - b1**step)) / ((v_new / (1 - b2**step)).sqrt() + rule.eps)
    p_new = p * (1 - rule.lr * rule.weight_decay) - change
    allowed = _explained(p_new, change, (m, m_new), (v, v_new), g, step, rule, dtype)
    counted = float(found.after["step"]) == step == (known_step or step)
    ratios = [0.0 if counted else math.inf]
    for name, right in (("parameter", p_new), ("exp_avg", m_new), ("exp_avg_sq", v_new)):
        allowed[name] += _half_ulp(right, found.after[name].dtype)
        distance = (found.after[name].double() - right).abs()
        ratio = torch.where(distance == 0, 0.0, distance / allowed[name])
        ratios.append(float(ratio.nan_to_num(nan=math.inf, posinf=math.inf).max()))
    return int(((p_new - p).abs() > 2 * allowed["parameter"]).sum()), max(ratios)


def _explained(
    p_new: Tensor,
    change: Tensor,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    gradient: Tensor,
    step: float,
    rule: AdamW,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return what an update in float32 or better may be off by, before it is stored.

    Each operation rounds once. So does 1 - beta, by u absolutely, which counts where beta is near 1; and 1 - beta^step,
    by step times u. The moments may be used as they are stored.
    """
    u = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    stored = torch.finfo(dtype).eps / 2
    (m, m_new), (v, v_new), g = first, second, gradient
    off_m = UPDATE_ROUNDINGS * u * (m.abs() + g.abs())
    off_v = UPDATE_ROUNDINGS * u * v_new + 2 * u * (v + g * g)
    corrections = sum(step * u * b**step / (1 - b**step) for b in rule.betas)
    relative = UPDATE_ROUNDINGS * u + corrections + 2 * stored
    relative = relative + _share(off_m, m_new.abs()) + _share(off_v, v_new)
    return {"parameter": relative * change.abs() + 4 * u * p_new.abs(), "exp_avg": off_m, "exp_avg_sq": off_v}


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole, 0 where both are 0."""
    return torch.where(part == 0, 0.0, part / whole.clamp(min=torch.finfo(whole.dtype).tiny))


def _half_ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return half the distance between neighbours of x in a dtype."""
    info = torch.finfo(dtype)
    # Just above a power of two, the log of what rounds to it may lie below.
    exponent = torch.floor(torch.log2(x.abs().clamp(min=info.smallest_normal)) + 1e-9)
    return 0.5 * info.eps * torch.exp2(exponent)
