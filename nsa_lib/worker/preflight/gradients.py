"""Checks of the route, of the rotation, and of the gradients that reach the parameters."""

from __future__ import annotations

import math

import torch

from nsa_lib.contract.figures import largest
from nsa_lib.subject import training
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import profiling
from nsa_lib.worker.preflight import error_budget
from nsa_lib.worker.preflight.against_reference import worst_relative_error
from nsa_lib.worker.preflight.finding import Finding, at_most, within_budget
from nsa_lib.worker.preflight.subject import LAYERS, Subject


def executed_route(subject: Subject, backend: str) -> Finding:
    """See which backend a layer enters, as the running code names itself."""
    layer, x = subject.layer(backend), subject.inputs[0]
    ran = ", ".join(sorted(profiling.executed_routes(lambda: layer(x)))) or "none"
    return Finding(ran, backend, "", "backend that was entered, beside the one asked for", ran == backend)


def rope_distance(subject: Subject) -> Finding:
    """Give all tokens the same features. Then q . k of each head must depend on the distance of two tokens alone."""
    layer, c = subject.layer(subject.case.model.backend), subject.config
    x = subject.random(1, 1, c.dim).expand(1, subject.length, -1)
    with torch.no_grad():
        parts = layer.project(x)
    q = parts["query"][0].cpu().double()
    turned = error_budget.rotation(subject.dtype, last_position=subject.length, width=c.d_k, base=c.rope_base)
    allowed = 2 * math.sqrt(2) * turned
    drifts, turns = [], []
    for name in ("key_slc", "key_win"):
        k = parts[name][0].cpu().double().repeat_interleave(c.heads // c.groups, dim=0)
        logits = q @ k.mT
        size = q.norm(dim=-1).mean(-1) * k.norm(dim=-1).mean(-1) / math.sqrt(c.d_k)
        drift = torch.stack([spread_along_diagonals(head) for head in logits])
        drifts.append(float((drift / size).max()))
        turns.append(float((logits[:, -1].std(dim=-1) / size).min()))
    worst, least = largest(drifts), min(turns)
    detail = f"rms change of q . k at one distance, worst head of {c.heads}; over distances it changes by {least:.2g}"
    return Finding(float(f"{worst:.3g}"), float(f"{allowed:.3g}"), "", detail, worst <= allowed < least)


def spread_along_diagonals(logits: torch.Tensor) -> torch.Tensor:
    """Return the rms deviation of entries [T, T] at and below the diagonal from the mean of their diagonal."""
    diagonals = [logits.diagonal(-distance) for distance in range(len(logits))]
    deviations = torch.cat([diagonal - diagonal.mean() for diagonal in diagonals])
    return deviations.square().mean().sqrt()


def gradients_of(model: TinyLM, tokens: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Return the gradient of the loss by each parameter."""
    model.zero_grad(set_to_none=True)
    loss = training.chunked_cross_entropy(model.hidden(tokens[:, :-1]), model.head.weight, tokens[:, 1:])
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients_reach(subject: Subject) -> Finding:
    """Look for parameters whose gradient is missing, zero, NaN or Inf."""
    model = subject.model(layers=LAYERS, backend=subject.case.model.backend)
    model.grad_checkpointing = subject.case.grad_checkpointing
    gradients = gradients_of(model, subject.tokens(subject.length + 1))
    bad = [name for name, g in gradients.items() if g is None or not g.any() or not g.isfinite().all()]
    detail = f"of {len(gradients)}: " + (", ".join(bad) if bad else "all have a finite gradient that is not zero")
    return at_most(len(bad), 0, "parameters", detail)


def checkpointing_agrees(subject: Subject) -> Finding:
    """Hold the gradients of each parameter with checkpointing against those without."""
    model, tokens = subject.model(layers=LAYERS, backend=subject.case.model.backend), subject.tokens(subject.length + 1)
    found = []
    for model.grad_checkpointing in (False, True):
        gradients = gradients_of(model, tokens)
        found.append({n: torch.zeros(()) if g is None else g.cpu().double() for n, g in gradients.items()})
    plain, again = found
    errors = {name: worst_relative_error(again[name].expand_as(g), g) for name, g in plain.items()}
    with torch.no_grad():
        x = model.blocks[0].norm_attention(model.embedding(tokens[:, :-1]))
    # The same operators on the same numbers; on a GPU, sums by atomics come in another order each time.
    allowed = error_budget.module(model.blocks[0].attention.cpu(), x.cpu()).gradient
    return within_budget(errors, dict.fromkeys(errors, allowed))
