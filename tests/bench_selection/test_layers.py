"""The judge is the definition, in loops."""

import math

import pytest
import torch

from nsa_lib.subject.attention import NSAttention
from nsa_lib.subject.attention.reference_rows import Layer, rows
from nsa_lib.subject.config import ModelConfig, NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.selection_health import NEAR_TIE
from tests.bench_selection.layers import entropy, layers, union_size

CONFIG = NSAConfig(dim=16, heads=4, groups=2, d_k=8, d_v=8, l=4, d=4, l_sel=8, n_sel=4, w=24)
LENGTH = 150


def test_a_union_counts_each_block_of_a_tile_once():
    blocks = torch.randint(0, 9, (2, 3, 22, 5)).sort(dim=-1).values
    sizes = [
        len({block for row in group[first : first + 4] for block in row})
        for sequence in blocks.tolist()
        for group in sequence
        for first in range(0, 20, 4)
    ]
    assert union_size(blocks, 4) == pytest.approx(sum(sizes) / len(sizes))


def test_entropy_is_1_for_equal_shares_and_0_for_one():
    assert entropy(torch.ones(2, 8)) == pytest.approx(1)
    assert entropy(torch.eye(8)[:2]) == pytest.approx(0)
    assert entropy(torch.tensor([[1.0, 1, 0, 0]])) == pytest.approx(0.5)
    assert entropy(torch.zeros(1, 4)) == 0


def test_every_layer_is_looked_at_with_what_it_reads():
    model = TinyLM(ModelConfig(nsa=CONFIG, layers=2, vocab=32)).double()
    tokens = torch.randint(32, (2, LENGTH))
    found, chosen = layers(model, tokens)
    assert [blocks.shape for blocks in chosen] == [(2, 2, LENGTH, 4)] * 2
    x = model.embedding(tokens)
    for layer, figures, blocks in zip(model.blocks, found, chosen, strict=True):
        attention: NSAttention = layer.attention
        read = layer.norm_attention(x)
        assert torch.equal(blocks, attention.select(read))
        exact = rows(Layer.of(read, dict(attention.named_parameters()), CONFIG), torch.arange(LENGTH), blocks)
        ties, entropies = [], []
        for t in range(CONFIG.n_sel * CONFIG.l_sel, LENGTH):
            for b in range(2):
                for g in range(2):
                    scores = exact.scores[b, g, t].tolist()
                    ranked = sorted(scores[1 : t // CONFIG.l_sel - 1], reverse=True)
                    ties.append(ranked[0] - ranked[1] <= NEAR_TIE * ranked[0])
                    shares = [score / sum(scores) for score in scores]
                    entropies.append(-sum(s * math.log(s) for s in shares if s) / math.log(len(shares)))
        assert figures["near_ties"] == pytest.approx(sum(ties) / len(ties), abs=0.02)
        assert figures["score_entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-3)
        gates = attention.branch_gates_of(read).mean(dim=(0, 1, 2))
        assert [figures[f"gate_{name}"] for name in ("cmp", "slc", "win")] == pytest.approx(gates.tolist())
        x = layer(x)


def test_a_text_shorter_than_what_a_query_reads_has_no_figures():
    model = TinyLM(ModelConfig(nsa=CONFIG, layers=1, vocab=32))
    (figures,), _ = layers(model, torch.randint(32, (1, 32)))
    assert "overlap" not in figures
    assert figures["near_ties"] is None
