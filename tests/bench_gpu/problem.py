"""What the contestants are given: the two head layouts, and random tensors of one length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from nsa_lib.subject.config import BRANCHES, NSAConfig
from tests.bench_selection.captured import captured, continued

LAYOUTS = {
    "H=12 G=12 D=64": NSAConfig(
        dim=768, heads=12, groups=12, d_k=64, d_v=64, l=16, d=16, l_sel=64, n_sel=16, w=512, phi="mean"
    ),
    "H=64 G=4 D=128": NSAConfig(
        dim=8192, heads=64, groups=4, d_k=128, d_v=128, l=32, d=16, l_sel=64, n_sel=16, w=512, phi="mean"
    ),
}
"""The checklist's layout, group size 1; and one of group size 16."""

LENGTHS = (2048, 8192, 32768, 65536)

PAD = -1

REDRAWN = {"10 % redrawn": 0.1, "2 % redrawn": 0.02, "0.5 % redrawn": 0.005, "the same for all": 0.0}
"""Selections that change slowly, as those of trained models do: how often a query draws another block than the one
before it kept in a place. The last is hot: all queries read the same few blocks."""

CAPTURED = "captured"
"""The selection of a layer of a model that was trained on text (see tests/bench_selection)."""

SELECTIONS = (*REDRAWN, CAPTURED)

RISING = "rising scores"
"""Queries and compressed keys whose scores rise with the index: the choice finds a better block in every tile."""

SLOW = "queries that change slowly"
"""From one random query to another over SLOW_OVER queries, so that neighbours choose alike."""

SLOW_OVER = 64

RISE = 4.0
"""Between the logits of the first compressed key and of the last."""


@dataclass(frozen=True)
class Problem:
    """Random tensors of one layout and length, by name, in [1, heads, T, width]."""

    config: NSAConfig
    length: int
    tensors: dict[str, torch.Tensor]
    """`q`, `k_<branch>`, `v_<branch>`, `gates` in (0, 1), `cotangent` of an output."""
    blocks: torch.Tensor
    """Random causal selection, int32 [1, G, T, n_sel]."""

    @cached_property
    def long_blocks(self) -> torch.Tensor:
        """The selection as int64, which the backends take."""
        return self.blocks.long()

    @cached_property
    def token_major_blocks(self) -> torch.Tensor:
        """The selection as [1, T, G, n_sel]."""
        return self.blocks.transpose(1, 2).contiguous()

    def choosing(self, selection: str) -> Problem:
        """Return the problem with a selection of that name: of SELECTIONS, RISING or SLOW; with none, itself."""
        if not selection:
            return self
        if selection == RISING:
            return replace(self, tensors=self.tensors | self._rising())
        if selection == SLOW:
            return replace(self, tensors=self.tensors | {"q": self._slow_queries()})
        c, device = self.config, self.blocks.device
        if selection == CAPTURED:
            kept = continued(captured().to(device), self.length, l_sel=c.l_sel, groups=c.groups)
            return replace(self, blocks=kept[None])
        generator = torch.Generator(device).manual_seed(1)
        sizes = {"l_sel": c.l_sel, "n_sel": c.n_sel, "redrawn": REDRAWN[selection]}
        return replace(self, blocks=kept_blocks(c.groups, self.length, **sizes, generator=generator, device=device))

    def _rising(self) -> dict[str, torch.Tensor]:
        """Return queries that are random but in two places, and compressed keys that are 0 but there.

        The two places of a key add up to how far it rises: one number of bfloat16 would be a staircase.
        """
        q, k = self.tensors["q"].clone(), torch.zeros_like(self.tensors["k_cmp"])
        rise = torch.linspace(0, 1, k.shape[2], dtype=torch.float64, device=k.device)
        q[..., :2] = RISE / self.scale
        k[..., 0] = rise
        k[..., 1] = rise - k[..., 0].double()
        return {"q": q, "k_cmp": k}

    def _slow_queries(self) -> torch.Tensor:
        """Return queries that turn from one random one to the next, as long as those."""
        query = torch.arange(self.length, device=self.blocks.device)
        angle = (query % SLOW_OVER / SLOW_OVER * torch.pi / 2)[:, None].to(self.tensors["q"].dtype)
        first = query // SLOW_OVER
        here, there = (self.tensors["q"][:, :, anchor % self.length] for anchor in (first, first + 1))
        return angle.cos() * here + angle.sin() * there

    @cached_property
    def unit_gate(self) -> torch.Tensor:
        """A gate of 1 for one branch, [1, H, T, 1]."""
        return torch.ones_like(self.tensors["gates"][..., :1])

    @property
    def scale(self) -> float:
        """Of the logits."""
        return self.config.d_k**-0.5

    @classmethod
    def random(cls, config: NSAConfig, length: int, *, dtype: torch.dtype, device: str, seed: int = 0) -> Problem:
        """Return normal numbers: zeros would draw less power, and so run at a higher clock."""
        generator = torch.Generator(device).manual_seed(seed)
        c, compressed = config, (length - config.l) // config.d + 1

        def normal(heads: int, rows: int, width: int) -> torch.Tensor:
            return torch.randn(1, heads, rows, width, generator=generator, device=device, dtype=dtype)

        tensors = {"q": normal(c.heads, length, c.d_k), "cotangent": normal(c.heads, length, c.d_v)}
        for branch in BRANCHES:
            rows = compressed if branch == "cmp" else length
            tensors[f"k_{branch}"], tensors[f"v_{branch}"] = (normal(c.groups, rows, d) for d in (c.d_k, c.d_v))
        tensors["gates"] = normal(c.heads, length, len(BRANCHES)).sigmoid()
        blocks = random_blocks(c.groups, length, l_sel=c.l_sel, n_sel=c.n_sel, generator=generator, device=device)
        return cls(config, length, tensors, blocks)


def kept_blocks(
    groups: int, length: int, *, l_sel: int, n_sel: int, redrawn: float, generator: torch.Generator, device: str
) -> torch.Tensor:
    """Return a selection that keeps the rules of `random_blocks` and changes from query to query in few places.

    Place s of the others holds one of the blocks 1 + s, 1 + s + (n_sel - 3), ..., the first until it is drawn anew.
    """
    far = n_sel - 3
    query, place = torch.arange(length, device=device), torch.arange(far, device=device)
    own = query // l_sel

    def uniform() -> torch.Tensor:
        return torch.rand(groups, length, far, generator=generator, device=device)

    drawn_at = torch.where(uniform() < redrawn, query[:, None], -1).cummax(dim=1).values
    rounds = (own - 2).clamp(min=0) // far
    pick = (uniform() * rounds[:, None]).long().minimum((rounds - 1).clamp(min=0)[:, None])  # a product may round up
    pick = pick.gather(1, drawn_at.clamp(min=0))
    block = 1 + place + far * torch.where(drawn_at < 0, 0, pick)
    behind = int(own[-1]) + 1
    others = torch.where(block <= own[:, None] - 2, block, behind)
    fixed = torch.stack([own * 0, torch.where(own >= 2, own - 1, behind), torch.where(own >= 1, own, behind)], dim=-1)
    chosen = torch.cat([fixed.expand(groups, -1, -1), others], dim=-1).sort(dim=-1).values
    return chosen.masked_fill(chosen == behind, PAD)[None].int()


def random_blocks(
    groups: int, length: int, *, l_sel: int, n_sel: int, generator: torch.Generator, device: str
) -> torch.Tensor:
    """Return a random selection that keeps the rules: block 0, the query's own, the one before it, and others before.

    The others are a uniform sample without repetition of the blocks between, by Floyd's algorithm: n_sel - 3 draws, for
    all queries at once, without a T x N buffer.

    Returns:
        int32 [1, groups, T, n_sel], ascending, padded at the end with -1.
    """
    own = torch.arange(length, device=device) // l_sel
    fixed = [torch.zeros_like(own), torch.where(own >= 2, own - 1, PAD), torch.where(own >= 1, own, PAD)]
    chosen = torch.stack(fixed, dim=-1).expand(groups, -1, -1)
    between, draws = (own - 2).clamp(min=0), n_sel - len(fixed)
    for last in (between - draws + i for i in range(draws)):
        draw = torch.rand(groups, length, generator=generator, device=device) * (last + 1)
        block = 1 + draw.long().minimum(last)  # a product that float32 rounds up to `last + 1` is no block
        taken = (chosen[..., len(fixed) :] == block[..., None]).any(dim=-1)
        block = torch.where(taken, 1 + last, block)
        block = torch.where(last >= 0, block, PAD)
        chosen = torch.cat([chosen, block[..., None]], dim=-1)
    behind = int(own[-1]) + 1
    chosen = chosen.masked_fill(chosen == PAD, behind).sort(dim=-1).values
    return chosen.masked_fill(chosen == behind, PAD)[None].int()
