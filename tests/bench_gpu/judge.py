"""Compare a contestant with float64 before it is timed.

The judge is attention under a mask, from the definition, with plain autograd; what is allowed is the error budget of
`worker.preflight.error_budget` for the contestant's dtype. Where all queries would be too many, as at S = 65,536, some
are judged: the gradient that enters is zero at all others, which leaves exact what is compared, the output at those
queries and every gradient in full. The choice of blocks is judged by what it gives away: a block of a lower score may
stand for one of a higher only where rounding cannot tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lib.subject.attention.selection import shared_tokens
from nsa_lib.worker.preflight import error_budget
from tests.bench_gpu.contestants import Contestant, fused_choice
from tests.bench_gpu.floors import keys_seen
from tests.bench_gpu.problem import PAD, Problem
from tests.budget import error

KEYS_OF = {"dense": "causal", "compressed": "compressed", "selected": "selected", "sliding": "recent"}

BRANCH_OF = {"dense": "slc", "compressed": "cmp", "selected": "slc", "sliding": "win"}

WHOLE = ("compressed", "selected", "sliding")
"""The branches of the whole, in the order of their keys, values and gates."""

SCORE_ERROR = 1e-4
"""Relative error of a block's score: exp of float32 logits near 5, and the bits that a packed key leaves the score."""


@dataclass(frozen=True)
class Judgement:
    """How far a contestant is from float64, as relative errors, and how far it may be."""

    errors: dict[str, float]
    allowed: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values())

    @property
    def wrong(self) -> str:
        """What is beyond its budget, in words, or nothing."""
        beyond = [name for name, found in self.errors.items() if not found <= self.allowed[name]]
        return "; ".join(f"{name}: error {self.errors[name]:.2e}, budget {self.allowed[name]:.2e}" for name in beyond)


def judge(contestant: Contestant, problem: Problem, *, queries: int) -> Judgement:
    """Compare a contestant's output and gradients with float64 at that many queries, spread with both ends."""
    rows = torch.linspace(0, problem.length - 1, min(queries, problem.length), dtype=torch.float64).round().long()
    rows = rows.to(problem.blocks.device)
    if contestant.part == "choice":
        return _judge_choice(contestant.run(problem), problem, rows)
    *leaves, cotangent = (problem.tensors[name] for name in (*contestant.reads, "cotangent"))
    sparse = torch.zeros_like(cotangent).index_copy_(2, rows, cotangent[:, :, rows])
    found = _with_gradients(
        lambda *x: contestant.run(problem, *x), [contestant.turned(x) for x in leaves], contestant.turned(sparse)
    )
    output, *gradients = (contestant.turned(x) for x in found)
    expected = _with_gradients(
        lambda *x: _exact(contestant.part, problem, rows, *x),
        [x.double() for x in leaves],
        cotangent[:, :, rows].double(),
    )
    allowed = _allowed(contestant.part, problem, rows)
    labels = ("output", *(f"gradient of {name}" for name in contestant.reads))
    errors = map(error, (output[:, :, rows], *gradients), expected)
    return Judgement(
        dict(zip(labels, errors, strict=True)), dict(zip(labels, (allowed[0], *allowed[1:] * len(leaves)), strict=True))
    )


def _with_gradients(function: Callable[..., Tensor], leaves: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in leaves]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]


def _exact(part: str, problem: Problem, rows: Tensor, *tensors: Tensor) -> Tensor:
    """Return a part's output at some queries, [1, H, rows, d_v]."""
    if part == "whole":
        q, *keys_and_values, gates = tensors
        chosen = fused_choice(problem)
        outputs = [
            _attend(q[:, :, rows], k, v, _sees(branch, problem, rows, chosen), problem.scale)
            for k, v, branch in zip(keys_and_values[::2], keys_and_values[1::2], WHOLE, strict=True)
        ]
        return sum(gate[..., None] * out for gate, out in zip(gates[:, :, rows].unbind(-1), outputs, strict=True))
    q, k, v = tensors
    return _attend(q[:, :, rows], k, v, _sees(part, problem, rows, problem.blocks), problem.scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Return softmax(q kᵀ scale) v over the keys that are seen, [1, G or 1, rows, keys] bool; 0 where none is."""
    logits = (_logits(q, k) * scale).masked_fill(~seen[:, :, None], -math.inf)
    # A row that sees nothing is made finite first, so that no NaN comes back through it.
    empty = ~seen.any(dim=-1)[:, :, None, :, None]
    p = logits.masked_fill(empty, 0).softmax(dim=-1).masked_fill(empty, 0)
    return (p.flatten(2, 3) @ v).unflatten(2, p.shape[2:4]).flatten(1, 2)


def _logits(q: Tensor, k: Tensor) -> Tensor:
    """Return q kᵀ by group, [1, G, H / G, rows, keys], in one product a group: no copy of k for each head."""
    grouped = q.unflatten(1, (k.shape[1], -1))
    return (grouped.flatten(2, 3) @ k.mT).unflatten(2, grouped.shape[2:4])


def _sees(part: str, problem: Problem, rows: Tensor, blocks: Tensor) -> Tensor:
    """Return which keys some queries see, [1, G or 1, rows, keys]."""
    c, query, key = problem.config, rows[:, None], torch.arange(problem.length, device=rows.device)
    if part == "compressed":
        ends = torch.arange(problem.tensors["k_cmp"].shape[2], device=rows.device) * c.d + c.l - 1
        return (ends <= query)[None, None]
    if part == "selected":
        chosen, padded = blocks[:, :, rows].long(), -(-problem.length // c.l_sel)
        chosen = chosen.masked_fill(chosen == PAD, padded)
        is_chosen = torch.zeros(*chosen.shape[:3], padded + 1, dtype=torch.bool, device=rows.device)
        return is_chosen.scatter_(-1, chosen, True)[..., key // c.l_sel] & (key <= query)
    return ((key <= query) & (key > query - (c.w if part == "sliding" else problem.length)))[None, None]


def _allowed(part: str, problem: Problem, rows: Tensor) -> tuple[float, float]:
    """Return the budget of the output and of a gradient."""
    c, x = problem.config, problem.tensors
    if part == "whole":
        mixing = error_budget.steps(x["q"].dtype, roundings=error_budget.MERGE_ROUNDINGS)
        branches = [_allowed(branch, problem, rows) for branch in WHOLE]
        return tuple(math.hypot(max(errors), mixing) for errors in zip(*branches, strict=True))
    keys = keys_seen(KEYS_OF[part], c, problem.length - 1)
    allowed = error_budget.attention(x["q"][:, :, rows], x[f"k_{BRANCH_OF[part]}"], keys=keys)
    return allowed.output, allowed.gradient


def _judge_choice(found: Tensor, problem: Problem, rows: Tensor) -> Judgement:
    """Judge chosen blocks: all rows by the rules, some by the scores of the same queries and keys in float64.

    `rules` is 0 where every row is ascending, padded at the end, within the past, with the fixed blocks in it and as
    many others as there are, else 1. `given away` is the largest share of a row's best score by which it is missed.
    """
    ranked = _ranked(problem, rows)
    index, absent = found[:, :, rows].long(), found[:, :, rows] == PAD
    got = ranked.gather(-1, index.clamp(0, ranked.shape[-1] - 1)).masked_fill(absent, -math.inf)
    got = got.sort(dim=-1, descending=True).values[..., : ranked.shape[-1]]
    best = ranked.sort(dim=-1, descending=True).values[..., : got.shape[-1]]
    missed = (best - got) / best.nan_to_num(0, 0, 0).amax(-1, keepdim=True).clamp(min=1e-300)
    missed = torch.where(best.isfinite(), missed, 0)
    errors = {"rules": 0.0 if _keeps_the_rules(found, problem) else 1.0, "given away": float(missed.abs().max())}
    return Judgement(errors, {"rules": 0.0, "given away": SCORE_ERROR})


def _ranked(problem: Problem, rows: Tensor) -> Tensor:
    """Return the score of each block for some queries, [1, G, rows, N]; inf for fixed blocks, -inf for future ones."""
    c, x = problem.config, problem.tensors
    logits = _logits(x["q"][:, :, rows].double(), x["k_cmp"].double()) * problem.scale
    seen = _sees("compressed", problem, rows, problem.blocks)[:, :, None]
    p = logits.masked_fill(~seen, -math.inf).softmax(dim=-1).nan_to_num(0).sum(dim=2)
    selectable = -(-problem.length // c.l_sel)
    scores = p @ shared_tokens(p.shape[-1], selectable, c.l, c.d, c.l_sel, p.dtype, p.device)
    own, block = rows[:, None] // c.l_sel, torch.arange(selectable, device=rows.device)
    fixed = (block == 0) | (block == own) | (block == own - 1)
    return scores.masked_fill(fixed, math.inf).masked_fill(block > own, -math.inf)


def _keeps_the_rules(found: Tensor, problem: Problem) -> bool:
    c = problem.config
    own = torch.arange(problem.length, device=found.device)[:, None] // c.l_sel
    padding = torch.arange(c.n_sel, device=found.device) > own
    kept = [
        (found == PAD) == padding,
        (found >= PAD) & (found <= own),
        (found.long().diff(dim=-1) > 0) | padding[:, 1:],
        *((found == block).any(dim=-1) for block in (torch.zeros_like(own), own, (own - 1).clamp(min=0))),
    ]
    return found.shape[-1] == c.n_sel and all(bool(rule.all()) for rule in kept)
