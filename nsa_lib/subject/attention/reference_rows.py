"""The judge at full length: any rows of a layer, from the equations, many rows at a time.

It is `reference` for sequences that loops cannot go through. Attention is dense, under a mask that says what each row
sees; some groups and a chunk of rows at a time, so that memory is bounded. It shares no code with what it judges, runs
on any device, and knows no backends.

It computes in an arithmetic. In EXACT, float64, it says what is right. In the arithmetic of a run, it makes the
roundings that a correct implementation in that dtype may make, forward and backward: the distance between the two is
what such a run may lose, row by row. `reference_gradients` makes the gradients.

B batch, T tokens, R rows, H heads, G groups, h = H / G heads a group, D head width, C compressed tokens, N blocks;
n groups that are taken together, Bn = B n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import silu

from nsa_lib.subject.attention.arithmetic import EXACT, Arithmetic
from nsa_lib.subject.attention.reference_heads import joined, split_heads, unfolded
from nsa_lib.subject.config import NSAConfig

CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Logits that exist at a time: what fits a cache, and what keeps a GPU busy (512 MiB in float64)."""

WINDOWS = {"cpu": 1, "cuda": 4}
"""Rows of a part of the sliding branch, in windows: more see more keys in vain, fewer make more kernels to launch."""

FEWEST_ROWS = 64
"""Rows of a part, at least, where a window is narrower."""

DRAW = 2654435761
"""Of multiplicative hashing (Knuth): its products' middle bits say which angles are rounded up."""


@dataclass(frozen=True)
class Layer:
    """A layer in an arithmetic: its input x [B, T, dim] and its parameters by name."""

    x: Tensor
    parameters: dict[str, Tensor]
    config: NSAConfig
    arithmetic: Arithmetic

    @classmethod
    def of(
        cls,
        x: Tensor,
        parameters: Mapping[str, Tensor],
        config: NSAConfig,
        *,
        arithmetic: Arithmetic = EXACT,
        device: str | torch.device | None = None,
    ) -> Layer:
        """Return the layer with everything in the arithmetic's wide dtype, on `device` or where x is."""
        to = {"device": x.device if device is None else device, "dtype": arithmetic.wide}
        return cls(x.detach().to(**to), {n: p.detach().to(**to) for n, p in parameters.items()}, config, arithmetic)

    @cached_property
    def turns(self) -> tuple[Tensor, Tensor]:
        """The cosines and sines of position / base^(2i/D), [T, d_k / 2] each.

        A power f = base^-y may be off by a unit in its last place, which is two roundings, and by that of its exponent
        times y ln(base); f = 1 is exact. The angle rounds once more, each by itself. In the arithmetic of a run all are
        off by as much, the frequencies up and down in turn, the angles as a fixed draw has it.
        """
        a, base, width, device = self.arithmetic, self.config.rope_base, self.config.d_k, self.x.device
        y = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
        off = a.angle_error * (3 + y * math.log(base)) * (y > 0)
        off[1::2] *= -1
        positions = torch.arange(self.x.shape[1], device=device)[:, None]
        up = ((positions * DRAW >> 16) >> torch.arange(width // 2, device=device) % 16) % 2
        angles = positions * base**-y * (1 + off) * (1 + a.angle_error * (2 * up - 1))
        return angles.cos().to(a.wide), angles.sin().to(a.wide)


@dataclass
class Rows:
    """What a layer makes in some rows."""

    output: Tensor
    """[B, R, dim], after `out`."""
    branches: dict[str, Tensor] = field(default_factory=dict)
    """Each branch's output, [B, H, R, d_v]."""
    branch_gates: Tensor | None = None
    """[B, H, R, branches]."""
    scores: Tensor | None = None
    """Block scores (Eqs. 9, 10), [B, G, R, N]; None without the selected branch."""


@torch.no_grad()
def rows(layer: Layer, positions: Tensor, blocks: Tensor | None, *, alive: Callable[[], None] = lambda: None) -> Rows:
    """Return what the layer makes of the rows at `positions` of every sequence (Eq. 5).

    Args:
        layer: the layer.
        positions: int64 [R], ascending.
        blocks: what these rows select, [B, G, R, n_sel], -1 for none; None without the selected branch.
        alive: called now and then, for whoever watches.
    """
    c, keep = layer.config, layer.arithmetic.keep
    positions = positions.to(layer.x.device)
    made = Rows(layer.x.new_zeros(layer.x.shape[0], len(positions), c.dim))
    outputs, gates, scores = {name: [] for name in c.branches}, [], []
    for some in groups_of(layer, len(positions)):
        alive()
        group = group_of(layer, some, positions)
        mixed = 0.0
        for index, branch in enumerate(c.branches):
            out = torch.cat([
                attend(layer.arithmetic, *tensors_of(group, branch, part), part.seen)[0]
                for part in parts_of(layer, group, branch, blocks)
            ], dim=2)  # fmt: skip
            outputs[branch].append(unfolded(out, len(some)))
            mixed = keep(mixed + keep(group.gates[..., index, None] * out))
        gates.append(unfolded(group.gates, len(some)))
        made.output += joined(unfolded(mixed, len(some))) @ out_weight(layer, some).T
        if "slc" in c.branches:
            scores.append(_scores(layer, group).unflatten(0, (-1, len(some))))
    made.output = keep(made.output)
    made.branches = {name: torch.cat(parts, dim=1) for name, parts in outputs.items()}
    made.branch_gates = torch.cat(gates, dim=1)
    made.scores = torch.cat(scores, dim=1) if scores else None
    return made


@dataclass(frozen=True)
class Group:
    """The queries of some groups at some rows, their gates, and the keys and values that they attend to."""

    groups: range
    positions: Tensor
    """[R]."""
    q: Tensor
    """[Bn, h, R, d_k]."""
    gates: Tensor
    """[Bn, h, R, branches]."""
    keys: dict[str, Tensor]
    """[Bn, T or C, d_k]."""
    values: dict[str, Tensor]
    """[Bn, T or C, d_v]."""


@dataclass(frozen=True)
class Part:
    """Some rows of a branch and the range of keys that holds all they see."""

    rows: slice
    keys: slice
    seen: Tensor
    """[Bn or 1, 1, rows, keys]."""


def groups_of(layer: Layer, rows: int) -> Iterator[range]:
    """Cut the groups into some that are taken together: their logits in so many rows stay below CHUNK_ELEMENTS."""
    c, (batch, length) = layer.config, layer.x.shape[:2]
    logits = batch * c.heads // c.groups * rows * length
    size = max(1, CHUNK_ELEMENTS[layer.x.device.type] // max(1, logits))
    for start in range(0, c.groups, size):
        yield range(start, min(start + size, c.groups))


def group_of(layer: Layer, some: range, positions: Tensor) -> Group:
    c, p, keep, x = layer.config, layer.parameters, layer.arithmetic.keep, layer.x
    share = c.heads // c.groups
    taken = x if len(positions) == x.shape[1] else x[:, positions]

    def projected(x: Tensor, name: str, width: int) -> Tensor:
        made = keep(x @ p[f"{name}.weight"][some.start * width : some.stop * width].T)
        return made.unflatten(-1, (len(some), width)).transpose(1, 2).flatten(0, 1)

    q = split_heads(projected(taken, "query", share * c.d_k), c.d_k)
    gates = projected(taken, "branch_gates", share * len(c.branches))
    everywhere = torch.arange(x.shape[1], device=x.device)
    keys, values = {}, {}
    for branch in dict.fromkeys((*c.branches, *(("cmp",) if "slc" in c.branches else ()))):
        k = projected(x, f"key_{branch}", c.d_k)
        if branch == "cmp":
            k = _compressed(layer, "phi_k", k)
            places = torch.arange(k.shape[1], device=x.device) * c.d + c.l - 1
        keys[branch] = _rotated(layer, k, places if branch == "cmp" else everywhere)
        if branch in c.branches:
            v = projected(x, f"value_{branch}", c.d_v)
            values[branch] = _compressed(layer, "phi_v", v) if branch == "cmp" else v
    gates = split_heads(keep(torch.sigmoid(gates)), len(c.branches))
    return Group(some, positions, _rotated(layer, q, positions), gates, keys, values)


def _compressed(layer: Layer, phi: str, x: Tensor) -> Tensor:
    """Return phi of each block of l tokens, one every d (Eq. 7): [B, T, D] -> [B, C, D]."""
    c, p, keep = layer.config, layer.parameters, layer.arithmetic.keep
    if x.shape[1] < c.l:
        return x[:, :0]
    blocks = x.unfold(1, c.l, c.d).mT
    if c.phi == "mean":
        return keep(blocks.mean(dim=-2))
    hidden = keep(keep(blocks + p[f"{phi}.position"]).flatten(-2) @ p[f"{phi}.reduce.weight"].T)
    return keep(keep(silu(hidden)) @ p[f"{phi}.mix.weight"].T)


def _rotated(layer: Layer, x: Tensor, positions: Tensor) -> Tensor:
    """Rotate the halves of x [..., R, d_k], whose rows stand at these positions."""
    cos, sin = (turn[positions] for turn in layer.turns)
    first, second = x.chunk(2, dim=-1)
    return layer.arithmetic.keep(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1))


def parts_of(layer: Layer, group: Group, branch: str, blocks: Tensor | None) -> Iterator[Part]:
    """Cut the rows of a branch into parts whose logits stay below CHUNK_ELEMENTS."""
    c, positions, places = layer.config, group.positions, group.positions.tolist()
    device, some = positions.device.type, slice(group.groups.start, group.groups.stop)
    most = CHUNK_ELEMENTS[device] // group.q[:, :, 0, 0].numel()
    widest = layer.x.shape[1] if branch != "cmp" else group.keys["cmp"].shape[1]
    size = max(1, most // max(1, widest))
    if branch == "win" and len(places) > places[-1] - places[0]:
        # Neighbours see about the same keys; more of them than the window is wide would see more in vain.
        size = max(size, min(max(WINDOWS[device] * c.w, FEWEST_ROWS), math.isqrt(most) // 2, most // (2 * c.w)))
    for start in range(0, len(places), size):
        chosen = slice(start, min(start + size, len(places)))
        t, low, high = positions[chosen, None], places[chosen.start], places[chosen.stop - 1]
        if branch == "cmp":
            keys = slice(0, max(0, (high + 1 - c.l) // c.d + 1))
            seen = (torch.arange(keys.stop, device=t.device) * c.d + c.l - 1 <= t)[None]
        elif branch == "win":
            keys = slice(max(0, low - c.w + 1), high + 1)
            token = torch.arange(keys.start, keys.stop, device=t.device)
            seen = ((token <= t) & (token > t - c.w))[None]
        else:
            keys = slice(0, high + 1)
            chosen_blocks = blocks[:, some, chosen].flatten(0, 1).to(t.device)
            seen = _chosen_tokens(chosen_blocks, t, keys.stop, c.l_sel)
        yield Part(chosen, keys, seen[:, None])


def _chosen_tokens(blocks: Tensor, t: Tensor, length: int, l_sel: int) -> Tensor:
    """Return which tokens rows t [r, 1] see by their blocks [Bn, r, n_sel]: those of the blocks, up to their own."""
    columns = -(-length // l_sel) + 1  # column 0 is for -1, which is no block
    index = (blocks.long() + 1).clamp(max=columns)
    listed = torch.zeros(*blocks.shape[:2], columns + 1, dtype=torch.bool, device=t.device).scatter_(2, index, True)
    tokens = listed[..., 1:columns].repeat_interleave(l_sel, dim=-1)[..., :length]
    return tokens & (torch.arange(length, device=t.device) <= t)


def attend(a: Arithmetic, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax(q kᵀ / sqrt(d_k)) v [Bn, h, r, d_v] and the probabilities [Bn, h, r, S], 0 where nothing is seen.

    q [Bn, h, r, d_k], k [Bn, S, d_k], v [Bn, S, d_v], seen [Bn or 1, 1, r, S].
    """
    p = _probabilities(q, k, seen)
    return a.keep(times(a.keep(p), v)), p


def _probabilities(q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
    """Return the softmax over what is seen, [Bn, h, r, S], 0 elsewhere."""
    # Far below every logit, and finite: a row that sees nothing must not be NaN.
    logits = times(q / math.sqrt(q.shape[-1]), k.mT).masked_fill_(~seen, -1e30)
    return torch.softmax(logits, dim=-1).mul_(seen.any(dim=-1, keepdim=True))


def times(x: Tensor, y: Tensor) -> Tensor:
    """[Bn, h, r, k] times [Bn, k, m] -> [Bn, h, r, m]."""
    return (x.flatten(1, 2) @ y).unflatten(1, x.shape[1:3])


def _scores(layer: Layer, group: Group) -> Tensor:
    """Return the block scores of some groups' rows (Eqs. 9, 10), [Bn, R, N]: no gradient."""
    c, k = layer.config, group.keys["cmp"]
    first = torch.arange(k.shape[1], device=k.device)[:, None] * c.d
    start = torch.arange(-(-layer.x.shape[1] // c.l_sel), device=k.device) * c.l_sel
    shared = torch.minimum(first + c.l, start + c.l_sel) - torch.maximum(first, start)
    weights = shared.clamp(min=0).to(k.dtype) / c.d
    made = []
    for part in parts_of(layer, group, "cmp", None):
        p = _probabilities(group.q[:, :, part.rows], k[:, part.keys], part.seen)
        made.append(p.sum(dim=1) @ weights[part.keys])
    return torch.cat(made, dim=1)


def tensors_of(group: Group, branch: str, part: Part) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries, keys and values of a part."""
    q, k, v = group.q[:, :, part.rows], group.keys[branch][:, part.keys], group.values[branch][:, part.keys]
    return q.detach(), k.detach(), v.detach()


def out_weight(layer: Layer, some: range) -> Tensor:
    """Return what `out` does to the heads of some groups, [dim, n h d_v]."""
    width = layer.config.heads // layer.config.groups * layer.config.d_v
    return layer.parameters["out.weight"][:, some.start * width : some.stop * width]
