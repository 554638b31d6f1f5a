"""The judge: Native Sparse Attention (arXiv 2502.11089) in float64, as loops that follow the equations.

Nothing is shared with the code it judges, not even PyTorch's attention. Every function casts what it gets to float64
and is differentiable by plain autograd. It is slow on purpose, meant for a few hundred tokens; it knows no backends.

B batch, T tokens, H heads, G groups, D head width, C compressed tokens, N selection blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import silu

from nsa_lib.subject.config import NSAConfig

Seen = Callable[[int, int, int], Tensor]
"""From (batch, group, query) to the int64 positions of the keys that the query sees."""


def rope(x: Tensor, positions: Tensor | None = None, *, base: float = 10000.0) -> Tensor:
    """Rotate the halves of x [..., T, D] by position / base^(2i/D); positions [T] default to 0 .. T-1."""
    x = x.double()
    length, width = x.shape[-2:]
    positions = torch.arange(length) if positions is None else positions
    angles = torch.stack([positions.double() / base ** (2 * i / width) for i in range(width // 2)], dim=-1)
    first, second = x[..., : width // 2], x[..., width // 2 :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def compress(x: Tensor, phi: Callable[[Tensor], Tensor], *, l: int, d: int) -> Tensor:
    """Compress each block of l tokens, one every d (Eq. 7): [B, G, T, D] -> [B, G, C, D]."""
    x = x.double()
    starts = range(0, x.shape[2] - l + 1, d)
    if not starts:
        return x[:, :, :0]
    return torch.stack([phi(x[:, :, start : start + l]) for start in starts], dim=2)


def compressed_probabilities(q: Tensor, k_cmp: Tensor, *, l: int, d: int, scale: float | None = None) -> Tensor:
    """Return p_cmp [B, H, T, C]: softmax over the blocks that end at or before the query (Eq. 8), 0 elsewhere."""
    return _probabilities(q, k_cmp, _seen_compressed(k_cmp.shape[2], l, d), scale)


def compressed_attention(
    q: Tensor,
    k_cmp: Tensor,
    v_cmp: Tensor,
    *,
    l: int,
    d: int,
    scale: float | None = None,
) -> Tensor:
    """Attend to the compressed tokens: [B, H, T, d_v], 0 where a query sees none."""
    return _weighted_sum(compressed_probabilities(q, k_cmp, l=l, d=d, scale=scale), v_cmp)


@torch.no_grad()
def block_scores(p_cmp: Tensor, *, groups: int, l: int, d: int, l_sel: int) -> Tensor:
    """Score the selection blocks: [B, G, T, N] (Eqs. 9, 10).

    Compressed block i gives block j its probability times the tokens they share / d; the heads of a group are summed.
    """
    p_cmp = p_cmp.double()
    batch, heads, length, compressed = p_cmp.shape
    blocks = math.ceil(length / l_sel)
    scores = torch.zeros(batch, groups, length, blocks, dtype=torch.float64)
    for h, i, j in product(range(heads), range(compressed), range(blocks)):
        shared = min(i * d + l, (j + 1) * l_sel) - max(i * d, j * l_sel)
        if shared > 0:
            scores[:, _group(h, heads, groups), :, j] += p_cmp[:, h, :, i] * shared / d
    return scores


@torch.no_grad()
def select_blocks(scores: Tensor, *, l_sel: int, n_sel: int) -> Tensor:
    """Choose n_sel blocks for each query (Eqs. 11, 12): int64 [B, G, T, n_sel], ascending, -1 at the end.

    Block 0, the query's own and the one before it come first, then the highest scores, ties to the lower index.
    Raises FloatingPointError on a score that is NaN or infinite.
    """
    if not scores.isfinite().all():
        raise FloatingPointError("block scores are not finite")
    batch, groups, length, _ = scores.shape
    chosen = torch.full((batch, groups, length, n_sel), -1)
    values = scores.double().tolist()
    for b, g, t in product(range(batch), range(groups), range(length)):
        row, own = values[b][g][t], t // l_sel
        fixed = {0, max(own - 1, 0), own}
        ranked = sorted(set(range(own + 1)) - fixed, key=lambda j: (-row[j], j))
        blocks = sorted(fixed | set(ranked[: n_sel - len(fixed)]))
        chosen[b, g, t, : len(blocks)] = torch.tensor(blocks)
    return chosen


def selected_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_indices: Tensor,
    *,
    l_sel: int,
    scale: float | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Attend to the tokens at or before the query in its blocks [B, G, T, n_sel]: [B, H, T, d_v].

    `positions` [T] of the queries default to 0 .. T-1; with them, some queries of a longer sequence can be judged.

    Raises ValueError if a block is listed twice or lies outside the sequence.
    """
    length = k.shape[2]
    indices = block_indices.tolist()
    places = list(range(q.shape[2])) if positions is None else positions.tolist()

    def seen(b: int, g: int, row: int) -> Tensor:
        blocks, t = [j for j in indices[b][g][row] if j != -1], places[row]
        if len(set(blocks)) < len(blocks):
            raise ValueError(f"block_indices: a block is listed twice in {blocks}")
        if any(not 0 <= j * l_sel < length for j in blocks):
            raise ValueError(f"block_indices: a block of {blocks} lies outside the sequence")
        return torch.tensor([s for j in blocks for s in range(j * l_sel, (j + 1) * l_sel) if s <= t], dtype=torch.int64)

    return _weighted_sum(_probabilities(q, k, seen, scale), v)


def sliding_attention(q: Tensor, k: Tensor, v: Tensor, *, w: int, scale: float | None = None) -> Tensor:
    """Attend to the last w tokens, the query's own included: [B, H, T, d_v]."""
    return _weighted_sum(_probabilities(q, k, lambda b, g, t: torch.arange(max(0, t - w + 1), t + 1), scale), v)


def selection_scores(x: Tensor, parameters: Mapping[str, Tensor], config: NSAConfig) -> Tensor:
    """Return the block scores [B, G, T, N] of the whole module on x [B, T, dim]; without gradient."""
    x, parameters = x.double(), _float64(parameters)
    q, k_cmp = _rotated_query(x, parameters, config), _compressed_key(x, parameters, config)
    p_cmp = compressed_probabilities(q.detach(), k_cmp.detach(), l=config.l, d=config.d)
    return block_scores(p_cmp, groups=config.groups, l=config.l, d=config.d, l_sel=config.l_sel)


def nsa(
    x: Tensor,
    parameters: Mapping[str, Tensor],
    config: NSAConfig,
    block_indices: Tensor | None = None,
) -> Tensor:
    """Return the output [B, T, dim] of the whole module (Eq. 5) on x [B, T, dim].

    `parameters` are the module's own, by name; gradients reach them. `block_indices` [B, G, T, n_sel] replaces the
    selection, to judge a run of low precision by the blocks that it chose itself.
    """
    if "slc" in config.branches and block_indices is None:
        scores = selection_scores(x, parameters, config)
        block_indices = select_blocks(scores, l_sel=config.l_sel, n_sel=config.n_sel)
    x, parameters = x.double(), _float64(parameters)
    q = _rotated_query(x, parameters, config)
    gates = torch.sigmoid(x @ parameters["branch_gates.weight"].T)
    gates = gates.unflatten(-1, (config.heads, len(config.branches)))

    mixed = torch.zeros((), dtype=torch.float64)
    for index, branch in enumerate(config.branches):
        v = _heads(x, parameters[f"value_{branch}.weight"], config.groups)
        if branch == "cmp":
            v_cmp = compress(v, _phi("phi_v", parameters, config), l=config.l, d=config.d)
            out = compressed_attention(q, _compressed_key(x, parameters, config), v_cmp, l=config.l, d=config.d)
        else:
            k = rope(_heads(x, parameters[f"key_{branch}.weight"], config.groups), base=config.rope_base)
            if branch == "slc":
                out = selected_attention(q, k, v, block_indices, l_sel=config.l_sel)
            else:
                out = sliding_attention(q, k, v, w=config.w)
        mixed = mixed + gates[..., index].transpose(1, 2).unsqueeze(-1) * out
    return mixed.transpose(1, 2).flatten(2) @ parameters["out.weight"].T


def _probabilities(q: Tensor, k: Tensor, seen: Seen, scale: float | None) -> Tensor:
    """Softmax of scale * q . k over the keys that each query sees, 0 for the others: [B, H, T, keys]."""
    q, k = q.double(), k.double()
    (batch, heads, length, width), (groups, keys) = q.shape, k.shape[1:3]
    scale = 1 / math.sqrt(width) if scale is None else scale
    rows = []
    for b, h, t in product(range(batch), range(heads), range(length)):
        group = _group(h, heads, groups)
        positions = seen(b, group, t)
        p = torch.softmax(scale * k[b, group, positions] @ q[b, h, t], dim=0)
        rows.append(torch.zeros(keys, dtype=torch.float64).index_put((positions,), p))
    return torch.stack(rows).reshape(batch, heads, length, keys)


def _weighted_sum(p: Tensor, v: Tensor) -> Tensor:
    """Sum the values [B, G, keys, d_v] of each head's group by the probabilities [B, H, T, keys]."""
    heads, groups = p.shape[1], v.shape[1]
    return torch.stack([p[:, h] @ v[:, _group(h, heads, groups)].double() for h in range(heads)], dim=1)


def _seen_compressed(compressed: int, l: int, d: int) -> Seen:
    return lambda b, g, t: torch.tensor([i for i in range(compressed) if i * d + l - 1 <= t], dtype=torch.int64)


def _group(head: int, heads: int, groups: int) -> int:
    return head // (heads // groups)


def _float64(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: parameter.double() for name, parameter in parameters.items()}


def _heads(x: Tensor, weight: Tensor, heads: int) -> Tensor:
    """Project x [B, T, dim] and split it into heads: [B, heads, T, D]."""
    return (x @ weight.T).unflatten(-1, (heads, -1)).transpose(1, 2)


def _rotated_query(x: Tensor, parameters: Mapping[str, Tensor], config: NSAConfig) -> Tensor:
    return rope(_heads(x, parameters["query.weight"], config.heads), base=config.rope_base)


def _compressed_key(x: Tensor, parameters: Mapping[str, Tensor], config: NSAConfig) -> Tensor:
    """Compress the unrotated keys, then rotate each at the last position of its block: [B, G, C, d_k]."""
    k = _heads(x, parameters["key_cmp.weight"], config.groups)
    k_cmp = compress(k, _phi("phi_k", parameters, config), l=config.l, d=config.d)
    return rope(k_cmp, torch.arange(k_cmp.shape[2]) * config.d + config.l - 1, base=config.rope_base)


def _phi(name: str, parameters: Mapping[str, Tensor], config: NSAConfig) -> Callable[[Tensor], Tensor]:
    """Return phi of Eq. 7: the mean of a block, or mix(SiLU(reduce(block + position)))."""
    if config.phi == "mean":
        return lambda block: block.mean(dim=-2)
    position, reduce, mix = (parameters[f"{name}.{part}"] for part in ("position", "reduce.weight", "mix.weight"))
    return lambda block: silu((block + position).flatten(-2) @ reduce.T) @ mix.T
