"""Judge a recorded training step beyond its layers: the loss, and the gradients of all parameters.

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
from nsa_lib.worker.attestation.coverage import TRAIN_STEP, Part
from nsa_lib.worker.attestation.records import Entries, StepRecord
from nsa_lib.worker.attestation.rounding import MARGIN, Comparison, banded, compare


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
    not_compared: list[Part] = field(default_factory=list)

    @property
    def coverage(self) -> list[Part]:
        """What was compared, and what could not be."""
        return [*(Part(TRAIN_STEP, name) for name in ("loss", *self.parts)), *self.not_compared]

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
    norm: float | None = None
    """Of all gradients together, as the step returned it; None if it is not known."""
    exact_norm: float | None = None
    """The same, made of the gradients that were recorded."""
    norm_allowed: float = 0.0
    """Relative error that rounding explains."""

    @property
    def norm_ok(self) -> bool:
        """Whether the norm is that of the gradients."""
        return self.norm is None or abs(self.norm - self.exact_norm) <= self.norm_allowed * self.exact_norm

    @property
    def ok(self) -> bool:
        """Whether each trained parameter has a finite gradient that is not zero, and their norm is as returned."""
        return self.norm_ok and not (self.missing or self.not_finite or self.zero)


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
) -> tuple[int | None, dict[str, Comparison], list[Part]]:
    """Return how many positions are in the loss, its gradients compared, and what could not be."""
    counted, parts, not_compared = None, {}, []
    judged = partial(compare, dtype=record.hidden.dtype)
    if record.d_hidden is None:
        not_compared.append(Part(TRAIN_STEP, "d_hidden", why_not="no gradient reached the hidden states"))
    else:
        d_hidden = record.d_hidden.flatten(0, 1)
        # A position that the model rounds to nothing, far below float16, is not held against the run.
        counted = int((d_hidden.ne(0).any(dim=-1) | rounded.d_hidden.eq(0).all(dim=-1).cpu()).sum())
        # Where a token is learned, 1 - p of its label is all that is left: one logit's rounding decides.
        pair = right.d_hidden, rounded.d_hidden
        parts["d_hidden"] = judged(d_hidden, *pair, terms=_classes(record), pooled=True)
    if record.d_head is None and record.head is not None:
        not_compared.append(Part(TRAIN_STEP, "d_head", why_not=record.why_no_d_head))
    elif record.d_head is not None:
        bands = (banded(x) for x in (record.d_head, right.d_head, rounded.d_head))
        parts["d_head"] = judged(*bands, terms=record.labels.numel())
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


def judge_gradients(entries: Mapping[str, Entries], norm: float | None = None) -> GradientsFound:
    """Return which of a step's parameters have no gradient, one that is not finite, or only zeros.

    `norm` is what the step returned as that of all gradients together; None if it is not known.
    """
    trained = {name: found for name, found in entries.items() if found.trained}
    largest = {name: found.largest_gradient for name, found in trained.items()}
    norms = [found.gradient_norm for found in trained.values() if found.gradient_norm is not None]
    return GradientsFound(
        parameters=len(largest),
        missing=tuple(name for name, value in largest.items() if value is None),
        not_finite=tuple(name for name, value in largest.items() if value is not None and not math.isfinite(value)),
        zero=tuple(name for name, value in largest.items() if value == 0),
        fixed=tuple(name for name, found in entries.items() if not found.trained),
        norm=norm,
        exact_norm=math.hypot(*norms),
        norm_allowed=MARGIN * max(map(_norm_error, trained.values()), default=0.0),
    )


def _norm_error(found: Entries) -> float:
    """Return the relative error of the norm of a gradient that is added up in float32 and stored in its dtype."""
    dtype = found.before["parameter"].dtype
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    return math.hypot(torch.finfo(dtype).eps / 2, math.sqrt(found.size) * unit)
