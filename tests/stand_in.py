"""A stand-in for the kernels of `fused` on a CPU: plain functions under the names of its public ones.

What goes through a layer, a preflight, a contrast or the benchmark with `fused` can so be run, and spoilt, without a
GPU: `nsa` looks its parts up when it is called, the choice and the selected branch in `fused`, the other two here.
"""

import pytest
import torch
from torch.profiler import record_function

from nsa_lib.subject.attention import (
    BACKENDS,
    block_scores,
    compressed_attention,
    compressed_probabilities,
    fused,
    select_blocks,
    sliding_attention,
)
from nsa_lib.subject.attention.backends.masked import selection_bias
from nsa_lib.subject.attention.rope import apply_rope
from nsa_lib.subject.attention.sdpa import attend


def nsa(q, k_cmp, v_cmp, k_slc, v_slc, k_win, v_win, gates, *, config, observe=None):
    c, made = config, {"branch_gates": gates}

    def selected():
        blocks = fused.chosen_blocks(q, k_cmp, config=c)
        made["blocks"] = blocks
        return fused.selected_attention(q, k_slc, v_slc, blocks, l_sel=c.l_sel, scale=c.d_k**-0.5)

    branches = {
        "cmp": lambda: compressed_attention(q, k_cmp, v_cmp, l=c.l, d=c.d),
        "slc": selected,
        "win": lambda: sliding_attention(q, k_win, v_win, w=c.w),
    }
    outputs = [branches[name]() for name in c.branches]
    mixed = sum(gate[..., None] * output for gate, output in zip(gates.unbind(-1), outputs, strict=True))
    made |= dict(zip(c.branches, outputs, strict=True))
    return mixed if observe is None else observe("mixed", mixed, **made)


@torch.no_grad()
def chosen_blocks(q, k_cmp, *, config):
    c = config
    p = compressed_probabilities(q, k_cmp, l=c.l, d=c.d)
    scores = block_scores(p, groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel)
    return select_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel).int()


def selected_attention(q, k, v, block_indices, *, l_sel, scale):
    """As `masked` does it, in a range of its own: one that called `masked` would be seen to enter both."""
    with record_function("nsa::selected::fused"):
        share = q.shape[1] // k.shape[1]
        bias, k, v = (
            x.repeat_interleave(share, dim=1) for x in (selection_bias(block_indices.long(), l_sel, q.dtype), k, v)
        )
        return attend(q, k, v, bias=bias, scale=scale)


@pytest.fixture
def plain_fused(monkeypatch):
    """Let cases on a CPU go through `fused`, which the plain functions compute; return it."""
    for function in (nsa, chosen_blocks, selected_attention, apply_rope):
        monkeypatch.setattr(fused, function.__name__, function)
    monkeypatch.setitem(BACKENDS, "fused", selected_attention)
    monkeypatch.setattr("nsa_lib.contract.case.fused_refusal", lambda *sizes: None)
    return fused
