"""All gradients of a layer, from all its rows, by the equations: some groups and a chunk of rows at a time.

Attention is differentiated by hand, for memory; projections, compression and rotation by autograd. Letters as in
`reference_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nsa_lib.subject.attention.arithmetic import Arithmetic
from nsa_lib.subject.attention.reference_heads import folded, joined, split_heads, unfolded
from nsa_lib.subject.attention.reference_rows import (
    Group,
    Layer,
    attend,
    group_of,
    groups_of,
    out_weight,
    parts_of,
    tensors_of,
    times,
)


def gradients(
    layer: Layer, blocks: Tensor | None, d_output: Tensor, *, alive: Callable[[], None] = lambda: None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the gradient of x [B, T, dim], and of each parameter by name, from all rows.

    Args:
        layer: the layer.
        blocks: what each row selected, [B, G, T, n_sel], -1 for none; None without the selected branch.
        d_output: gradient of the layer's output, [B, T, dim].
        alive: called now and then, for whoever watches.
    """
    c, keep = layer.config, layer.arithmetic.keep
    d_output = d_output.detach().to(layer.x)
    x = layer.x.clone().requires_grad_()
    leaves = {name: p.clone().requires_grad_() for name, p in layer.parameters.items()}
    tracked = Layer(x, leaves, c, layer.arithmetic)
    positions = torch.arange(x.shape[1], device=x.device)
    for some in groups_of(layer, len(positions)):
        group = group_of(tracked, some, positions)
        d_mixed = folded(split_heads(keep(d_output @ out_weight(layer, some)), c.d_v), len(some))
        mixed, found = _backward(layer, group, blocks, d_mixed, alive)
        mixed = joined(unfolded(mixed, len(some)))
        out_weight(tracked, some).backward(d_output.flatten(0, 1).T @ mixed.flatten(0, 1))
        sources = [(t, d) for t, d in found if t.requires_grad]
        torch.autograd.backward([t for t, _ in sources], [keep(d) for _, d in sources])
    made = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}
    return keep(x.grad), {name: keep(gradient) for name, gradient in made.items()}


@torch.no_grad()
def _backward(
    layer: Layer, group: Group, blocks: Tensor | None, d_mixed: Tensor, alive: Callable[[], None]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return the gated sum of some groups [Bn, h, R, d_v], and each of their tensors with its gradient."""
    a, keep = layer.arithmetic, layer.arithmetic.keep
    d_q, d_gates = torch.zeros_like(group.q), torch.zeros_like(group.gates)
    found = [(group.q, d_q), (group.gates, d_gates)]
    mixed = torch.zeros_like(d_mixed)
    for index, branch in enumerate(layer.config.branches):
        alive()
        d_k, d_v = torch.zeros_like(group.keys[branch]), torch.zeros_like(group.values[branch])
        for part in parts_of(layer, group, branch, blocks):
            tensors, rows = tensors_of(group, branch, part), part.rows
            gate, d_gated = group.gates[:, :, rows, index, None].detach(), d_mixed[:, :, rows]
            out, p = attend(a, *tensors, part.seen)
            mixed[:, :, rows] += keep(gate * out)
            d_gates[:, :, rows, index] += (out * d_gated).sum(dim=-1)
            parts = _attend_backward(a, *tensors, out, p, keep(gate * d_gated))
            for total, where, gradient in zip((d_q, d_k, d_v), (rows, part.keys, part.keys), parts, strict=True):
                total[..., where, :] += gradient
        found += [(group.keys[branch], d_k), (group.values[branch], d_v)]
    return keep(mixed), found


def _attend_backward(
    a: Arithmetic, q: Tensor, k: Tensor, v: Tensor, out: Tensor, p: Tensor, d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v.

    ds = p (dp - out . d_out): the gradient of the normalisation is taken from the output as it is stored, for that is
    what implementations keep for backward.
    """
    d_p = a.keep(times(d_out, v.mT))
    d_s = a.keep(d_p.sub_((out * d_out).sum(dim=-1, keepdim=True)).mul_(p))
    d_q = times(d_s, k) / math.sqrt(q.shape[-1])
    d_k = d_s.flatten(1, 2).mT @ q.flatten(1, 2) / math.sqrt(q.shape[-1])
    return d_q, d_k, a.keep(p).flatten(1, 2).mT @ d_out.flatten(1, 2)
