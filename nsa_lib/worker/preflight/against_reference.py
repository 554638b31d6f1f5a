"""Checks against the float64 reference: a backend, a whole layer, and the choice of blocks."""

from __future__ import annotations

import math

import torch

from nsa_lib.contract.figures import counted, largest
from nsa_lib.subject.attention import (
    block_scores,
    compressed_probabilities,
    reference,
    select_blocks,
    selected_attention,
)
from nsa_lib.subject.config import FUSED
from nsa_lib.worker.accuracy import relative_error, with_gradients
from nsa_lib.worker.preflight import error_budget
from nsa_lib.worker.preflight.finding import Finding, at_most, within_budget
from nsa_lib.worker.preflight.subject import PLAIN, Subject

GIVEN_AWAY = 1e-4
"""Share of a row's best score: how much less a block may score than the block in whose place `fused` chose it. `fused`
makes scores in float32, of logits near 5, and ranks them by 14 leading bits or more."""


def selected_agrees(subject: Subject, backend: str) -> Finding:
    """Hold one backend's output and gradients against the reference, on the same blocks."""
    tensors, blocks, cotangent, exact = subject.selected
    c = subject.config

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return selected_attention(*tensors, blocks, l_sel=c.l_sel, backend=backend)

    found = with_gradients(run, tensors, cotangent)
    allowed = error_budget.attention(tensors[0].cpu(), tensors[1].cpu(), keys=c.n_sel * c.l_sel)
    names = ("output", "dq", "dk", "dv")
    errors = {name: worst_relative_error(mine, true) for name, mine, true in zip(names, found, exact, strict=True)}
    return within_budget(errors, dict.fromkeys(names, allowed.gradient) | {"output": allowed.output})


def layer_agrees(subject: Subject, backend: str) -> Finding:
    """Hold a whole layer's output, and its gradients by x and each parameter, against the reference."""
    layer, (x, cotangent) = subject.layer(backend), subject.inputs
    x = x.detach().clone().requires_grad_()
    output = layer(x)
    output.backward(cotangent)
    gradients = {"x": x.grad, **{name: parameter.grad for name, parameter in layer.named_parameters()}}
    allowed = error_budget.module(layer.cpu(), x.cpu())
    exact = dict(zip(("output", *gradients), subject.exact(backend), strict=True))
    errors = {"output": worst_relative_error(output, exact["output"])}
    for name, gradient in gradients.items():
        found = torch.zeros_like(exact[name]) if gradient is None else gradient
        errors[f"gradient of {name}"] = worst_relative_error(found, exact[name])
    return within_budget(errors, dict.fromkeys(errors, allowed.gradient) | {"output": allowed.output})


def choice_agrees(subject: Subject) -> Finding:
    """Hold the choice of blocks against the reference's, on scores of the layer's own queries and compressed keys."""
    layer, c = subject.layer(PLAIN), subject.config
    with torch.no_grad():
        parts = layer.project(subject.inputs[0])
        chosen = layer.choose(parts).cpu()
        p_cmp = compressed_probabilities(parts["query"], layer.compressed_keys(parts), l=c.l, d=c.d)
        scores = block_scores(p_cmp, groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel).cpu()
    exact = reference.block_scores(p_cmp.cpu(), groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel)
    ranked = reference.select_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel)
    again = select_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel)
    wrong = (chosen != ranked).any(-1) | (again != ranked).any(-1)
    # A sum of n numbers, all positive or 0, is off by n roundings at worst; each may also be scaled, by l / d.
    limit = (c.heads // c.groups + (c.l_sel + c.l) // c.d) * error_budget.unit(torch.float32)
    error = worst_relative_error(scores, exact)
    detail = (
        f"scores off by {error:.2g} (budget {limit:.2g}); {counted(wrong.numel(), 'row')}, chosen on identical scores"
    )
    return Finding(int(wrong.sum()), 0, "rows", detail, not wrong.any() and error <= limit)


def fused_choice_agrees(subject: Subject) -> Finding:
    """Hold the blocks that `fused` chooses against float64 scores of the layer's own queries and compressed keys.

    `fused` never writes its scores, so a choice is judged by what it gives away: how much less each block scores than
    the best one in its place, over the row's best score. The fixed blocks, the order and the padding must be the
    reference's.
    """
    layer, c = subject.layer(FUSED), subject.config
    with torch.no_grad():
        parts = layer.project(subject.inputs[0])
        q, k_cmp = parts["query"].cpu(), layer.compressed_keys(parts).cpu()
        chosen = layer.choose(parts).cpu()
    p_cmp = reference.compressed_probabilities(q, k_cmp, l=c.l, d=c.d)
    scores = reference.block_scores(p_cmp, groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel)
    given_away = share_given_away(chosen, scores, l_sel=c.l_sel)
    rows, moved = chosen[..., 0].numel(), int((given_away > 0).sum())
    detail = f"of a row's best score; {moved} of {rows} rows chose another block than float64 does"
    return at_most(float(f"{given_away.max():.3g}"), GIVEN_AWAY, "", detail)


def worst_relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the larger of two relative errors: that of the norm, and that of the largest entry; NaN if one is."""
    found, exact = found.detach().cpu().double(), exact.detach().cpu().double()
    if torch.equal(found, exact):
        return 0.0
    return largest((relative_error(found, exact), float((found - exact).abs().max() / exact.abs().max())))


def share_given_away(chosen: torch.Tensor, scores: torch.Tensor, *, l_sel: int) -> torch.Tensor:
    """Return by how much each row of blocks misses the best ones, over the row's best score. A broken rule is Inf.

    Args:
        chosen: blocks, int64 [B, G, T, n].
        scores: of all blocks, float64 [B, G, T, N].
        l_sel: tokens in a block.

    Returns:
        float64 [B, G, T].
    """
    n, blocks = chosen.shape[-1], scores.shape[-1]
    best = reference.select_blocks(scores, l_sel=l_sel, n_sel=n)
    own, block = torch.arange(scores.shape[2])[:, None] // l_sel, torch.arange(blocks)
    fixed, future = (block == 0) | (block == own) | (block == own - 1), block > own
    ranked = scores.masked_fill(fixed, math.inf).masked_fill(future, -math.inf)

    def values(rows: torch.Tensor) -> torch.Tensor:
        found = ranked.gather(-1, rows.clamp(0, blocks - 1)).masked_fill(rows < 0, -math.inf)
        return found.sort(dim=-1, descending=True).values

    had, got = values(best), values(chosen)
    highest = scores.masked_fill(fixed | future, 0).amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    missed = torch.where(had == got, 0.0, (had - got) / highest).amax(-1)
    padding = best == -1
    in_order = (chosen.diff(dim=-1) > 0) | padding[..., 1:]
    broken = ((chosen == -1) != padding).any(-1) | ~in_order.all(-1) | (chosen >= blocks).any(-1)
    return missed.masked_fill(broken, math.inf)
