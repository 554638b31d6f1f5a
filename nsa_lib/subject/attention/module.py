"""Native Sparse Attention as one module: three branches over the same queries, mixed by branch gates (Eq. 5).

Letters: B batch, T tokens, H heads, G groups, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import torch
from torch import nn
from torch.nn import functional as F

from nsa_lib.subject.attention import fused
from nsa_lib.subject.attention.backends import BACKENDS
from nsa_lib.subject.attention.compression import (
    CompressionMLP,
    compress,
    compressed_probabilities,
    mean,
    mix_compressed,
)
from nsa_lib.subject.attention.rope import apply_rope
from nsa_lib.subject.attention.selection import block_scores, choose_blocks
from nsa_lib.subject.attention.sliding import sliding_attention
from nsa_lib.subject.attention.tables import table
from nsa_lib.subject.config import FUSED, NSAConfig

ALIGNED = 16
"""Columns: at least 16 bytes in every dtype, and what a matrix unit takes at a time."""


@table
def zero_rows(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros [rows, width]."""
    return torch.zeros(rows, width, dtype=dtype, device=device)


class NSAttention(nn.Module):
    """Causal attention [B, T, dim] -> [B, T, dim] that reads compressed, selected and recent tokens.

    Parameters: `query`; `key_<branch>` and `value_<branch>` for each branch; `phi_k` and `phi_v` that compress blocks;
    `branch_gates`, a sigmoid gate for each head and branch; `out`. A branch that is off has no parameters. Without
    the compressed branch the selected one still ranks blocks by compressed keys. No gradient reaches those, so they
    are fixed.

    Raises ValueError for an unknown backend.
    """

    observe: Callable[..., torch.Tensor] | None = None
    """Called with "mixed" and the gated sum, [B, H, T, d_v], which it hands back; and, by name, with what it was made
    of: the branch outputs `cmp`, `slc` and `win` [B, H, T, d_v], the `branch_gates` [B, H, T, branches], and the
    `blocks` selected, [B, G, T, n_sel]; where kernels keep them so, `block_bits` instead, [B, G, T], a bit a block; and
    `by_union`, bool [B, G, tiles], where kernels decide for each tile of queries how its gradient is made."""

    def __init__(self, config: NSAConfig, backend: str = "masked"):
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r}: accepts {', '.join(BACKENDS)}")
        self.config, self.backend = config, backend
        c = config
        self.query = nn.Linear(c.dim, c.heads * c.d_k, bias=False)
        for branch in c.branches:
            self.add_module(f"key_{branch}", nn.Linear(c.dim, c.groups * c.d_k, bias=False))
            self.add_module(f"value_{branch}", nn.Linear(c.dim, c.groups * c.d_v, bias=False))
        if "cmp" in c.branches:
            self.phi_k, self.phi_v = self._phi(c.d_k), self._phi(c.d_v)
        elif "slc" in c.branches:
            self.key_cmp = nn.Linear(c.dim, c.groups * c.d_k, bias=False).requires_grad_(False)
            self.phi_k = self._phi(c.d_k)
            if isinstance(self.phi_k, nn.Module):
                self.phi_k.requires_grad_(False)
        self.branch_gates = nn.Linear(c.dim, c.heads * len(c.branches), bias=False)
        self.out = nn.Linear(c.heads * c.d_v, c.dim, bias=False)

    def _phi(self, width: int):
        return CompressionMLP(self.config.l, width) if self.config.phi == "mlp" else mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention's output, projected, [B, T, dim] -> [B, T, dim]."""
        parts = self.project(x)
        mixed = self.all_at_once(parts) if self.backend == FUSED else self.branch_by_branch(parts)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def all_at_once(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the gated sum of the branches, [B, H, T, d_v], by kernels that hold no probabilities."""
        c = self.config
        k_cmp = self.compressed_keys(parts) if {"cmp", "slc"} & set(c.branches) else None
        v_cmp = compress(parts["value_cmp"], self.phi_v, l=c.l, d=c.d) if "cmp" in c.branches else None
        others = [parts.get(name) for name in ("key_slc", "value_slc", "key_win", "value_win")]
        return fused.nsa(parts["query"], k_cmp, v_cmp, *others, parts["branch_gates"], config=c, observe=self.observe)

    def branch_by_branch(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the gated sum of the branches, [B, H, T, d_v], one branch after the other."""
        c = self.config
        outputs, made, p_cmp = {}, {"branch_gates": parts["branch_gates"]}, None
        if {"cmp", "slc"} & set(c.branches):
            p_cmp = self._p_cmp(parts)
        if "cmp" in c.branches:
            outputs["cmp"] = mix_compressed(p_cmp, compress(parts["value_cmp"], self.phi_v, l=c.l, d=c.d))
        if "slc" in c.branches:
            backend = BACKENDS[self.backend]
            q, k, v = parts["query"], parts["key_slc"], parts["value_slc"]
            blocks = made["blocks"] = self._ranked(p_cmp)
            outputs["slc"] = backend(q, k, v, blocks, l_sel=c.l_sel, scale=c.d_k**-0.5)
        if "win" in c.branches:
            outputs["win"] = sliding_attention(parts["query"], parts["key_win"], parts["value_win"], w=c.w)
        gates = parts["branch_gates"].unbind(dim=-1)
        mixed = reduce(
            torch.add, (gate[..., None] * outputs[branch] for gate, branch in zip(gates, c.branches, strict=True))
        )
        return mixed if self.observe is None else self.observe("mixed", mixed, **made, **outputs)

    @property
    def can_select(self) -> bool:
        """Whether the selected branch is on."""
        return "slc" in self.config.branches

    can_show_gates = True

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The branches, each of which has a gate."""
        return self.config.branches

    @property
    def block(self) -> int:
        """Tokens of a block that it selects."""
        return self.config.l_sel

    @property
    def window_tokens(self) -> int:
        """Tokens that its sliding branch sees."""
        return self.config.w

    @torch.no_grad()
    def select(self, x: torch.Tensor) -> torch.Tensor:
        """Return the blocks that each query of x selects, [B, T, dim] -> int64 [B, G, T, n_sel]."""
        return self.choose(self.project(x))

    @torch.no_grad()
    def choose(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the blocks that each query of projections selects, int64 [B, G, T, n_sel]."""
        if self.backend == FUSED:
            return fused.chosen_blocks(parts["query"], self.compressed_keys(parts), config=self.config).long()
        return self._ranked(self._p_cmp(parts))

    @torch.no_grad()
    def branch_gates_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return the branch gates, [B, T, dim] -> [B, H, T, branches], branches in the order of the config."""
        return self.project(x)["branch_gates"]

    def _ranked(self, p_cmp: torch.Tensor) -> torch.Tensor:
        c = self.config
        scores = block_scores(p_cmp, groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel)
        # A NaN among the scores also reaches the output through the queries, and so the loss, which training checks.
        return choose_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel)

    def _p_cmp(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        c = self.config
        with torch.set_grad_enabled(torch.is_grad_enabled() and "cmp" in c.branches):
            return compressed_probabilities(parts["query"], self.compressed_keys(parts), l=c.l, d=c.d)

    def compressed_keys(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the compressed keys of projections, rotated, [B, G, C, d_k]."""
        c = self.config
        k_cmp = compress(parts["key_cmp"], self.phi_k, l=c.l, d=c.d)
        return self._rotate(k_cmp, stride=c.d, offset=c.l - 1)

    def _rotate(self, x: torch.Tensor, **positions: int) -> torch.Tensor:
        """Return x [B, heads, T, D] rotated."""
        rotate = fused.apply_rope if self.backend == FUSED else apply_rope
        return rotate(x, base=self.config.rope_base, **positions)

    def project(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return all projections of x [B, T, dim] by name, as `protocol.Attention` says.

        One product makes them all, and one rotation turns the queries and keys that are rotated at their own positions:
        a layer of eight small products would wait for their launches. Zeros widen the rows to a multiple of ALIGNED, so
        that each starts where wide loads can read it.
        """
        c = self.config
        rotated = ["query", *(f"key_{branch}" for branch in ("slc", "win") if branch in c.branches)]
        others = ["key_cmp"] if hasattr(self, "key_cmp") else []
        others += [*(f"value_{branch}" for branch in c.branches), "branch_gates"]
        weights = {name: self.get_submodule(name).weight for name in (*rotated, *others)}
        turning = sum(len(weights[name]) for name in rotated)
        widths = [turning, *(len(weights[name]) for name in others)]
        widths.append(-sum(widths) % ALIGNED)
        weight = torch.cat([*weights.values(), zero_rows(widths[-1], c.dim, x.dtype, x.device)])
        turned, *rest, _ = F.linear(x, weight).split(widths, dim=-1)
        turned = self._rotate(turned.unflatten(-1, (-1, c.d_k)).transpose(1, 2))
        turned = turned.split([len(weights[name]) // c.d_k for name in rotated], dim=1)
        parts = dict(zip((*rotated, *others), (*turned, *rest), strict=True))
        for name in others[:-1]:
            width = c.d_v if name.startswith("value") else c.d_k
            parts[name] = parts[name].unflatten(-1, (c.groups, width)).transpose(1, 2)
        gates = parts["branch_gates"].sigmoid()
        parts["branch_gates"] = gates.unflatten(-1, (c.heads, len(c.branches))).transpose(1, 2)
        return parts
