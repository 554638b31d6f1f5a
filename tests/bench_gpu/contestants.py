"""Who is measured: dense attention, the backends of the selected branch, the parts of `fused`, and fla-core.

A contestant names the tensors of a problem that it reads and takes a gradient for, and is called with them. Triton and
fla-core are imported when one of theirs is called: who lacks them has rows that say so. One branch of `fused` is its
whole with that branch alone and a gate of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nsa_lib.subject.attention import fused
from nsa_lib.subject.attention.backends import BACKENDS
from nsa_lib.subject.config import BRANCHES, NSAConfig
from tests.bench_gpu.problem import CAPTURED, RISING, SELECTIONS, SLOW, Problem
from tests.bench_selection import captured

SELECTED_READS = ("q", "k_slc", "v_slc")
WHOLE_READS = ("q", *(f"{kv}_{branch}" for branch in BRANCHES for kv in "kv"), "gates")

FUSED, FLA = "fused", "fla-core"

DENSE = {
    "cuda": {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION},
    "cpu": {"math": SDPBackend.MATH},
}
"""The kernels of scaled_dot_product_attention that dense attention is the best of, by device."""

MASKED_LONGEST = 8192
"""Beyond it the T x T mask of `masked` takes gigabytes."""

FLA_GROUP_SIZE = 16

KEPT_SHORTEST, CAPTURED_SHORTEST = 65536, 8192
"""Below it most blocks are near, or chosen by all, whatever the selection; and the length of the captured one."""


@dataclass(frozen=True)
class Contestant:
    """One way to compute one part."""

    part: str
    """Of `floors.PARTS`."""
    name: str
    reads: tuple[str, ...]
    """Tensors of the problem that get a gradient, in the order of `run`'s arguments; none: no backward."""
    run: Callable[..., Tensor]
    """From a problem and the tensors to the output."""
    token_major: bool = False
    """Reads, and gives, [B, T, heads, D] instead of [B, heads, T, D]."""
    may_be_slow: bool = True
    """Whether it is given up where a call takes too long."""
    selection: str = ""
    """What `Problem.choosing` takes; the problem's own, random from query to query, if empty."""

    def turned(self, x: Tensor) -> Tensor:
        """Turn a tensor from [B, heads, T, D] into the contestant's own layout, or back."""
        return x.transpose(1, 2).contiguous() if self.token_major else x


def contestants(config: NSAConfig, device: str, *, others: bool = True) -> list[Contestant]:
    """Return who is measured on a layout, in order: dense first, the yardstick of all others.

    Without `others`, dense attention and `fused` alone.
    """
    compressed, sliding = (partial(_fused_branch, replace(config, branches=(branch,))) for branch in ("cmp", "win"))

    def ours(part: str, reads: tuple[str, ...], run: Callable[..., Tensor], selection: str = "") -> Contestant:
        name = f"{FUSED}, {selection}" if selection else FUSED
        return Contestant(part, name, reads, run, may_be_slow=False, selection=selection)

    field = [
        *_dense(config, device),
        *(ours("whole", WHOLE_READS, _fused_nsa, queries) for queries in ("", SLOW)),
        *(ours("selected", SELECTED_READS, _fused_selected, blocks) for blocks in ("", *SELECTIONS)),
        ours("compressed", ("q", "k_cmp", "v_cmp"), compressed),
        *(ours("choice", (), fused_choice, scores) for scores in ("", RISING)),
        ours("sliding", ("q", "k_win", "v_win"), sliding),
    ]
    if others:
        names = (name for name in BACKENDS if name != FUSED)
        field += [Contestant("selected", name, SELECTED_READS, partial(_backend, name)) for name in names]
        field.append(Contestant("selected", FLA, SELECTED_READS, _fla_selected, token_major=True))
    return field


def why_not(contestant: Contestant, config: NSAConfig, length: int) -> str:
    """Return why a contestant does not apply to a layout and length, or nothing."""
    if contestant.name == "masked" and length > MASKED_LONGEST:
        return f"makes a T x T mask; tried up to S={MASKED_LONGEST:,}"
    if contestant.selection == CAPTURED:
        too_short = f"captured selections are tried from S={CAPTURED_SHORTEST:,} on"
        return too_short if length < CAPTURED_SHORTEST else captured.why_not(config.n_sel, config.l_sel)
    if contestant.selection and length < KEPT_SHORTEST:
        return f"selections and scores of other kinds than random are tried from S={KEPT_SHORTEST:,} on"
    if contestant.name == FLA and config.heads // config.groups < FLA_GROUP_SIZE:
        return f"needs heads / groups >= {FLA_GROUP_SIZE}"
    return ""


def _dense(config: NSAConfig, device: str) -> list[Contestant]:
    """Return dense attention by each kernel; where heads share keys, as the kernel does it and by repeating them."""
    ways = [False] if config.heads == config.groups else [False, True]
    return [
        Contestant(
            "dense",
            f"{name}, repeated heads" if repeat else name,
            SELECTED_READS,
            partial(_sdpa, kernel, repeat),
            may_be_slow=False,
        )
        for name, kernel in DENSE[device].items()
        for repeat in ways
    ]


def _sdpa(kernel: SDPBackend, repeat: bool, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    share = q.shape[1] // k.shape[1]
    if repeat:
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    with sdpa_kernel(kernel):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=problem.scale, enable_gqa=share > 1 and not repeat
        )


def _backend(name: str, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return BACKENDS[name](q, k, v, problem.long_blocks, l_sel=problem.config.l_sel, scale=problem.scale)


def _fla_selected(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Without gates for the other branches fla-core computes the selected one alone (and pools keys and values)."""
    from fla.ops.nsa import parallel_nsa

    c = problem.config
    return parallel_nsa(
        q,
        k,
        v,
        block_indices=problem.token_major_blocks,
        block_counts=c.n_sel,
        block_size=c.l_sel,
        scale=problem.scale,
    )


def _fused_nsa(problem: Problem, *tensors: Tensor) -> Tensor:
    return fused.nsa(*tensors, config=problem.config)


def _fused_selected(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return fused.selected_attention(q, k, v, problem.blocks, l_sel=problem.config.l_sel, scale=problem.scale)


def _fused_branch(alone: NSAConfig, problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    pairs = ((k, v) if alone.branches == (branch,) else (None, None) for branch in BRANCHES)
    return fused.nsa(q, *chain(*pairs), problem.unit_gate, config=alone)


def fused_choice(problem: Problem) -> Tensor:
    """Return the blocks that `fused` chooses."""
    return fused.chosen_blocks(problem.tensors["q"], problem.tensors["k_cmp"], config=problem.config)
