"""Compare a contestant with float64 before it is timed.

The judge is attention under a mask, from the definition, with plain autograd; what is allowed is the error budget of
`nsa_lib.budget` for the contestant's dtype. The choice of blocks is judged by what it gives away: a block of a lower
score may stand for one of a higher only where rounding cannot tell them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lib import budget
from nsa_lib.attention.selection import block_scores
from tests.bench_gpu.contestants import Contestant, fused_choice
from tests.bench_gpu.floors import keys_seen
from tests.bench_gpu.problem import PAD, Problem
from tests.budget import error

KEYS_OF = {"dense": "causal", "compressed": "compressed", "selected": "selected", "sliding": "recent"}
BRANCH_OF = {"dense": "slc", "compressed": "cmp", "selected": "slc", "sliding": "win"}

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


def judge(contestant: Contestant, problem: Problem) -> Judgement:
    """Compare a contestant's output and gradients with float64 on a small problem."""
    if contestant.part == "choice":
        return _judge_choice(contestant.run(problem), problem)
    names = (*contestant.reads, "cotangent")
    *leaves, cotangent = (x.detach().clone() for x in contestant.tensors(problem, names))
    found = _with_gradients(lambda *x: contestant.run(problem, *x), leaves, cotangent)
    if contestant.token_major:
        found = [x.transpose(1, 2) for x in found]
    *leaves, cotangent = (problem.tensors[name].double() for name in names)
    expected = _with_gradients(lambda *x: _exact(contestant.part, problem, *x), leaves, cotangent)
    output, gradient = _allowed(contestant.part, problem)
    labels = ("output", *(f"gradient of {name}" for name in contestant.reads))
    errors = {label: error(a, b) for label, a, b in zip(labels, found, expected, strict=True)}
    return Judgement(errors, {label: output if label == "output" else gradient for label in labels})


def _with_gradients(function, leaves: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    leaves = [x.requires_grad_() for x in leaves]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]


def _exact(part: str, problem: Problem, *tensors: Tensor) -> Tensor:
    if part == "mix":
        gates, *outputs = tensors
        return sum(gate[..., None] * out for gate, out in zip(gates.unbind(-1), outputs))
    if part == "whole":
        q, *keys_and_values, gates = tensors
        seen = (
            _sees("compressed", problem),
            _sees("selected", problem, fused_choice(problem)),
            _sees("sliding", problem),
        )
        pairs = zip(keys_and_values[::2], keys_and_values[1::2], seen)
        return _exact("mix", problem, gates, *(_attend(q, k, v, mask, problem.scale) for k, v, mask in pairs))
    return _attend(*tensors, _sees(part, problem, problem.blocks), problem.scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Return softmax(q kᵀ scale) v over the keys that are seen, [1, G, T, keys] bool; 0 where none is."""
    grouped = q.unflatten(1, (k.shape[1], -1))
    logits = (grouped @ k[:, :, None].mT * scale).masked_fill(~seen[:, :, None], -math.inf)
    # A row that sees nothing is made finite first, so that no NaN comes back through it.
    empty = ~seen.any(dim=-1)[:, :, None, :, None]
    p = logits.masked_fill(empty, 0).softmax(dim=-1).masked_fill(empty, 0)
    return (p @ v[:, :, None]).flatten(1, 2)


def _sees(part: str, problem: Problem, blocks: Tensor | None = None) -> Tensor:
    """Return which keys each query sees, [1, G or 1, T, keys]."""
    c, length, device = problem.config, problem.length, problem.blocks.device
    query = torch.arange(length, device=device)[:, None]
    key = torch.arange(length, device=device)
    if part == "compressed":
        return (torch.arange(problem.tensors["k_cmp"].shape[2], device=device) * c.d + c.l - 1 <= query)[None, None]
    if part == "selected":
        chosen = torch.stack([(blocks == block).any(dim=-1) for block in range(-(-length // c.l_sel))], dim=-1)
        return chosen[..., key // c.l_sel] & (key <= query)
    return ((key <= query) & (key > query - (c.w if part == "sliding" else length)))[None, None]


def _allowed(part: str, problem: Problem) -> tuple[float, float]:
    """Return the budget of the output and of a gradient."""
    c, x = problem.config, problem.tensors
    mixing = budget.steps(x["q"].dtype, roundings=budget.MERGE_ROUNDINGS)
    if part == "mix":
        return mixing, budget.steps(x["q"].dtype, roundings=budget.MERGE_ROUNDINGS, terms=c.d_v)
    if part == "whole":
        branches = [_allowed(branch, problem) for branch in ("compressed", "selected", "sliding")]
        return tuple(math.hypot(max(errors), mixing) for errors in zip(*branches))
    keys = keys_seen(KEYS_OF[part], c, problem.length - 1)
    allowed = budget.attention(x["q"], x[f"k_{BRANCH_OF[part]}"], keys=keys)
    return allowed.output, allowed.gradient


def _judge_choice(found: Tensor, problem: Problem) -> Judgement:
    """Judge chosen blocks against float64 scores of the same queries and keys.

    `rules` is 0 where every row is ascending, padded at the end, within the past, with the fixed blocks in it and as
    many others as there are, else 1. `given away` is the largest share of a row's best score by which it is missed.
    """
    c, x = problem.config, problem.tensors
    seen = _sees("compressed", problem)
    q, k = x["q"].double().unflatten(1, (c.groups, -1)), x["k_cmp"].double()[:, :, None]
    logits = (q @ k.mT * problem.scale).masked_fill(~seen[:, :, None], -math.inf)
    p = logits.softmax(dim=-1).nan_to_num(0).flatten(1, 2)
    scores = block_scores(p, groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel)
    own = torch.arange(problem.length, device=found.device)[:, None] // c.l_sel
    block = torch.arange(scores.shape[-1], device=found.device)
    fixed = (block == 0) | (block == own) | (block == own - 1)
    ranked = scores.masked_fill(fixed, math.inf).masked_fill(block > own, -math.inf)
    count = (own[:, 0] + 1).clamp(max=c.n_sel)
    best = ranked.sort(dim=-1, descending=True).values[..., : c.n_sel]
    padding = torch.arange(found.shape[-1], device=found.device) >= count[:, None]
    index = found.long().clamp(0, scores.shape[-1] - 1)
    got = ranked.gather(-1, index).masked_fill(padding, -math.inf).sort(dim=-1, descending=True).values
    steps = found.long().diff(dim=-1)
    kept = (
        ((found == PAD) == padding).all()
        & ((steps > 0) | padding[:, 1:]).all()
        & (found <= own).all()
        & (found >= PAD).all()
        & ((got == math.inf).sum(-1) == (best == math.inf).sum(-1)).all()
    )
    missed = (best - got[..., : best.shape[-1]]) / best.nan_to_num(0, 0, 0).amax(-1, keepdim=True).clamp(min=1e-300)
    missed = torch.where(best.isfinite(), missed, 0)
    errors = {"rules": 0.0 if kept else 1.0, "given away": float(missed.abs().max())}
    return Judgement(errors, {"rules": 0.0, "given away": SCORE_ERROR})
