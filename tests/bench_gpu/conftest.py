"""A stand-in for the `fused` backend that needs neither Triton nor a GPU: the plain functions under its names."""

import sys
from types import ModuleType

import pytest
import torch

import nsa_lib.attention
from nsa_lib.attention import BACKENDS, block_scores, compressed_attention, compressed_probabilities, sliding_attention
from nsa_lib.attention import module as attention_module
from nsa_lib.attention.backends.masked import masked
from nsa_lib.attention.compression import visibility_bias
from nsa_lib.attention.selection import choose_blocks


def selected(q, k, v, block_indices, *, l_sel, scale):
    return masked(q, k, v, block_indices.long(), l_sel=l_sel, scale=scale)


def compressed(q, k_cmp, v_cmp, *, l, d, scale):
    k = k_cmp.repeat_interleave(q.shape[1] // k_cmp.shape[1], dim=1)
    hidden = visibility_bias(q.shape[2], k.shape[2], l, d, torch.float32, q.device)
    lse = (q.detach().float() @ k.detach().float().mT * scale + hidden).logsumexp(dim=-1)
    return compressed_attention(q, k_cmp, v_cmp, l=l, d=d, scale=scale), lse


@torch.no_grad()
def select_blocks(q, k_cmp, lse, *, l, d, l_sel, n_sel, scale):
    assert lse.shape == q.shape[:3]
    p = compressed_probabilities(q, k_cmp, l=l, d=d, scale=scale)
    scores = block_scores(p, groups=k_cmp.shape[1], l=l, d=d, l_sel=l_sel)
    return choose_blocks(scores, l_sel=l_sel, n_sel=n_sel).int()


def mix(gates, outputs):
    return sum(gate[..., None] * out for gate, out in zip(gates.unbind(-1), outputs, strict=True))


def nsa(q, k_cmp, v_cmp, k_slc, v_slc, k_win, v_win, gates, *, config):
    c, scale = config, config.d_k**-0.5
    out_cmp, lse = compressed(q, k_cmp, v_cmp, l=c.l, d=c.d, scale=scale)
    blocks = select_blocks(q, k_cmp, lse, l=c.l, d=c.d, l_sel=c.l_sel, n_sel=c.n_sel, scale=scale)
    out_slc = selected(q, k_slc, v_slc, blocks, l_sel=c.l_sel, scale=scale)
    return mix(gates, [out_cmp, out_slc, sliding_attention(q, k_win, v_win, w=c.w, scale=scale)])


@pytest.fixture
def plain_fused(monkeypatch):
    """Return the stand-in, installed; a test may replace one of its functions."""
    module = ModuleType("nsa_lib.attention.fused")
    module.selected_attention, module.compressed_attention, module.select_blocks = selected, compressed, select_blocks
    module.sliding_attention, module.mix, module.nsa = sliding_attention, mix, nsa
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for user in (nsa_lib.attention, attention_module):
        monkeypatch.setattr(user, "fused", module)
    monkeypatch.setitem(BACKENDS, "fused", selected)
    return module


@pytest.fixture
def no_fused(monkeypatch):
    """Make the import of the `fused` backend fail, as it does without Triton."""
    monkeypatch.setitem(sys.modules, "nsa_lib.attention.fused", None)
    monkeypatch.delattr(nsa_lib.attention, "fused", raising=False)
