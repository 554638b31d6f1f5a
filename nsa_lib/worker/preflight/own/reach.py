"""Checks of what a token can reach: nothing before it, no other sequence, nothing beyond a promised window."""

from __future__ import annotations

import random
import time

import torch
from torch import Tensor, nn

from nsa_lib.contract.figures import name_of_largest
from nsa_lib.worker.preflight.finding import Finding
from nsa_lib.worker.preflight.own.numbers import LONGEST
from nsa_lib.worker.preflight.own.precision import dtype_name, rounding, widest
from nsa_lib.worker.preflight.own.trial import LENGTHS, SHORT, Trial

CHANGE_LIMIT = {"bfloat16": 0.05, "float16": 0.02, "float32": 1e-4, "float64": 1e-9}
"""Change of a row that may not change, over the largest row. Most code keeps its bits; code that places rows by what
others chose may round its sums otherwise, and a near tie may choose another block."""

LEAK_ROUNDINGS = 2048
"""The same in the widest dtype, in roundings of the code itself: a Fourier transform of 2 T entries rounds each row by
log2(2 T) of the largest entry, here an edited one, of which products may go with the third power of EDIT_SIZE. What a
mask of -20 lets through is a hundred thousand times that."""

EDIT_ALL = 512
"""The longest sequence of which every token is edited in turn: that a row sees the next token shows in one edit."""

EDITS = 8
"""Random tokens of a longer one that are edited at least, beside the edges of likely blocks."""

EDIT_S = 30.0
"""Seconds in which as many more of its tokens are edited as there is time for, in a random order.

That one row sees one token shows in no edit but those between the two, and no run tells of more than its own edit.
"""

COTANGENTS = 12
"""Rows of a sequence whose gradient must not reach a later token."""

PADDING = 31

BATCH = 3
"""Sequences that are told apart where the run's own batch is one."""


def future(trial: Trial) -> Finding:
    """Edit tokens: no row before may change. Send a gradient into a row: it may reach no later token.

    In the run's dtype, at two lengths, of two sequences; in the widest one, where less than a rounding shows; and a
    short look at each layer that is made, for they need not be alike. Beyond EDIT_ALL tokens as many as there is time
    for are edited, and it is said how many.
    """
    limit, full = _limit(trial), trial.case.seq_len
    short = min(SHORT, full)
    module, used, moved = trial.fresh(), {}, True
    for length in sorted({short, min(full, EDIT_ALL), full}):
        found, all_moved = _looked_ahead(trial, module, length, _edits(length))
        used |= {name: (value, limit) for name, value in found.items()}
        moved &= all_moved
    for layer in range(1, trial.case.model.layers if trial.case.model.brings != "model" else 1):
        found, _ = _looked_ahead(trial, trial.fresh(), short, [short // 2], cotangents=1)
        used |= {f"{name}, layer {layer}": (value, limit) for name, value in found.items()}
    more = _more_edits(trial, module, full) if full > EDIT_ALL else {}
    used |= {name: (value, limit) for name, value in more.items()}
    wide = widest(trial)
    if wide is not None:
        bound = min(CHANGE_LIMIT["float32"], LEAK_ROUNDINGS * rounding(trial, wide))
        length = min(LONGEST, full)
        found, _ = _looked_ahead(trial, trial.fresh(wide), length, sorted({1, length // 2, length - 1}), cotangents=3)
        used |= {f"{name} in {dtype_name(wide)}": (value, bound) for name, value in found.items()}
    worst = name_of_largest({name: value / most for name, (value, most) in used.items()})
    detail = f"largest change of {worst}, over the largest row; {len(used)} edits and gradients"
    detail += f"; of {full - 1} edits at the full length {len(more) + len(_edits(full))}" if more else ""
    if not moved:
        detail = "an edited token changed no row at all"
    value, most = used[worst]
    return Finding(_short(value), _short(most), "", detail, moved and value <= most)


def _looked_ahead(
    trial: Trial, module: nn.Module, length: int, edits: list[int], *, cotangents: int = COTANGENTS
) -> tuple[dict[str, float], bool]:
    """Return what reaches rows that it may not reach, and whether each edited token changed a row that it may."""
    given, found, moved = trial.input(2, length), {}, True
    with torch.no_grad():
        before, _ = trial.run(module, given)
        for start in edits:
            if not 0 < start < length:
                continue
            after, _ = trial.run(module, trial.edited(given, start))
            found[_before_edited(start, length)] = change(before, after, slice(start))
            moved &= not torch.equal(before[:, start:], after[:, start:])
            trial.alive()
    found |= _backward(trial, module, given, cotangents)
    return found | _beyond_window(trial, module, given, before), moved


def _limit(trial: Trial) -> float:
    """Return what a row may change by; in float64 more where a part is computed in float32 all the same."""
    limit = CHANGE_LIMIT[trial.case.dtype]
    if trial.dtype != torch.float64:
        return limit
    return max(limit, min(CHANGE_LIMIT["float32"], LEAK_ROUNDINGS * rounding(trial, trial.dtype)))


def _more_edits(trial: Trial, module: nn.Module, length: int) -> dict[str, float]:
    """Return what reaches rows of a long sequence that it may not reach, of edits that `_edits` has not.

    Each of two sequences is edited at another token.
    """
    began, given, found = time.monotonic(), trial.input(2, length), {}
    rest = sorted(set(range(1, length)) - set(_edits(length)))
    random.Random(2).shuffle(rest)
    with torch.no_grad():
        before, _ = trial.run(module, given)
        largest_row = before.double().norm(dim=-1).max()
        for starts in zip(rest[::2], [*rest[1::2], *rest[:1]], strict=False):
            if time.monotonic() - began > EDIT_S:
                break
            edited = torch.cat([trial.edited(given, start)[one : one + 1] for one, start in enumerate(starts)])
            after, _ = trial.run(module, edited)
            for one, start in enumerate(starts):
                moved = (after[one, :start] - before[one, :start]).double().norm(dim=-1).max()
                found[_before_edited(start, length)] = float(moved / largest_row)
            trial.alive()
    return found


def _before_edited(token: int, length: int) -> str:
    return f"rows before token {token} of {length} when it is edited"


def others(trial: Trial) -> Finding:
    """Edit one sequence of a batch: no other one may change, nor one of a later call.

    Cut to other lengths: rows before keep their values.
    """
    module, limit, full = trial.fresh(), _limit(trial), trial.case.seq_len
    batch = trial.case.batch if trial.case.batch > 1 else BATCH
    found: dict[str, float] = {}
    for length in sorted({min(SHORT, full), full}):
        given = trial.input(batch, length)
        with torch.no_grad():
            before, _ = trial.run(module, given)
            for one in range(len(given)):
                edited = given.clone()
                edited[one] = trial.edited(given, 0)[one]
                rest = [other for other in range(len(given)) if other != one]
                after, _ = trial.run(module, edited)
                found[f"other sequences when sequence {one} is edited, length {length}"] = change(
                    before[rest], after[rest], slice(None)
                )
            alone, _ = trial.run(module, given[1:2].clone())
            found[f"a sequence that stands alone, length {length}"] = _distance(alone, before[1:2])
            for shorter in sorted({max(1, length - PADDING), *(n for n in LENGTHS if n < length)}):
                cut, _ = trial.run(module, given[:, :shorter].clone())
                found[f"rows before {length - shorter} tokens of padding, length {length}"] = change(
                    before[:, :shorter], cut, slice(None)
                )
            found[f"a call after one of other sequences, length {length}"] = _after_another(trial, given, before)
        for one in range(len(given)):
            found[f"gradient of other sequences than {one}, length {length}"] = _gradient_of_others(
                trial, module, given, one
            )
        trial.alive()
    worst = name_of_largest(found)
    detail = f"largest change of {worst}; {len(found)} were looked at"
    return Finding(_short(found[worst]), limit, "", detail, found[worst] <= limit)


def _after_another(trial: Trial, given: Tensor, before: Tensor) -> float:
    """Return how far an output is from itself where the module has seen other sequences, of the same shape, first."""
    module = trial.fresh()
    trial.run(module, trial.input(*given.shape[:2], seed=7))
    after, _ = trial.run(module, given)
    return _distance(after, before)


def _edits(length: int) -> list[int]:
    """Return tokens to edit: all of a sequence, of a long one edges of likely blocks and windows, and random ones."""
    if length <= EDIT_ALL:
        return list(range(1, length))
    edges = {at for size in (16, 32, 64, 128, 256, 512, 1024) for at in (size, size + 1, 3 * size) if at < length}
    return sorted({1, length // 2, length - 2, length - 1, *edges, *random.Random(0).sample(range(1, length), EDITS)})


def _backward(trial: Trial, module: nn.Module, given: Tensor, cotangents: int) -> dict[str, float]:
    """Return what the gradient of some rows has at later tokens, over its largest entry."""
    length, found = given.shape[1], {}
    draw = random.Random(1)
    rows = [length // 2, 0, length - 2, *(draw.randrange(length) for _ in range(COTANGENTS - 3))][:cotangents]
    for row in sorted({row for row in rows if 0 <= row < length - 1}):
        output, entered = trial.run(module, given)
        if entered is None or not output.requires_grad:
            return {}
        of_row = output[:, row].to(torch.promote_types(output.dtype, torch.float32)).square().sum()
        of_row.backward()  # not autograd.grad, which reentrant checkpoints refuse
        if entered.grad is not None:
            later = entered.grad[:, row + 1 :]
            found[f"the gradient of row {row} of {length} at later tokens"] = _share(later, entered.grad)
        trial.alive()
    module.zero_grad(set_to_none=True)
    return found


def _beyond_window(trial: Trial, module: nn.Module, given: Tensor, before: Tensor) -> dict[str, float]:
    """Return how rows change that lie further behind an edited token than the window that is promised."""
    window, length, found = getattr(module, "window", None), given.shape[1], {}
    if window is None:
        return {}
    for at in {0, length // 4, length // 2}:
        if at + window + 1 < length:
            with torch.no_grad():
                after, _ = trial.run(module, trial.edited(given, at, at + 1))
            behind = slice(at + window + 1, None)
            found[f"rows more than {window} behind edited token {at}"] = change(before, after, behind)
    return found


def _gradient_of_others(trial: Trial, module: nn.Module, given: Tensor, one: int) -> float:
    output, entered = trial.run(module, given)
    if entered is None or not output.requires_grad:
        return 0.0
    output[one].float().square().sum().backward()
    rest = [other for other in range(len(given)) if other != one]
    return 0.0 if entered.grad is None else _share(entered.grad[rest], entered.grad)


def change(before: Tensor, after: Tensor, rows: slice) -> float:
    """Return the largest change of a row, over the norm of the largest row."""
    moved = (after[:, rows] - before[:, rows]).double().flatten(2).norm(dim=-1)
    return float(moved.max() / before.double().flatten(2).norm(dim=-1).max()) if moved.numel() else 0.0


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm())


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part.abs().max() / whole.abs().max()) if part.numel() and whole.any() else 0.0


def _short(value: float) -> float:
    return float(f"{value:.3g}")
