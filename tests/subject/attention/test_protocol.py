"""What the instrument asks of an attention: each answer against the layer's own output, or one made by hand."""

from dataclasses import replace

import pytest
import torch

from nsa_lib.subject.attention import (
    ATTENTIONS,
    Attention,
    DenseAttention,
    NSAttention,
    block_scores,
    compressed_probabilities,
    select_blocks,
)
from nsa_lib.subject.config import ATTENTION_NAMES, BACKEND_NAMES
from tests.subject.test_config import MODEL, NSA


@pytest.mark.parametrize("backend", BACKEND_NAMES)
def test_native_sparse_attention_is_one_and_the_yardstick_is_none(backend):
    assert isinstance(NSAttention(NSA, backend), Attention)
    assert not isinstance(DenseAttention(NSA), Attention)


def test_there_is_an_attention_of_every_name():
    assert tuple(ATTENTIONS) == ATTENTION_NAMES
    assert isinstance(ATTENTIONS["dense"](MODEL), DenseAttention)
    layer = ATTENTIONS["nsa"](replace(MODEL, backend="gather"))
    assert (type(layer), layer.backend) == (NSAttention, "gather")


def test_its_answers_are_those_that_its_output_is_made_of():
    layer, x = NSAttention(NSA).double(), torch.randn(2, 300, NSA.dim, dtype=torch.float64)
    parts, c = layer.project(x), NSA
    by_hand = layer.query(x).unflatten(-1, (c.heads, c.d_k)).transpose(1, 2)
    torch.testing.assert_close(parts["query"].norm(dim=-1), by_hand.norm(dim=-1))
    torch.testing.assert_close(parts["branch_gates"], layer.branch_gates_of(x))
    logits = layer.branch_gates(x).unflatten(-1, (c.heads, 3)).transpose(1, 2)
    torch.testing.assert_close(layer.branch_gates_of(x), logits.sigmoid())
    keys = layer.compressed_keys(parts)
    assert keys.shape == (2, c.groups, (300 - c.l) // c.d + 1, c.d_k)
    p_cmp = compressed_probabilities(parts["query"], keys, l=c.l, d=c.d)
    scores = block_scores(p_cmp, groups=c.groups, l=c.l, d=c.d, l_sel=c.l_sel)
    blocks = select_blocks(scores, l_sel=c.l_sel, n_sel=c.n_sel)
    assert torch.equal(layer.choose(parts), blocks)
    assert torch.equal(layer.select(x), blocks)
