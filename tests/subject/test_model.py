"""TinyLM: its blocks, its checkpointing, and the dense yardstick."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nsa_lib.subject.attention import DenseAttention
from nsa_lib.subject.config import ModelConfig, NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.subject.training import chunked_cross_entropy
from nsa_lib.workbook.questions import QUESTIONS

NSA = NSAConfig(dim=32, heads=4, groups=2, d_k=8, d_v=4, l=16, d=16, l_sel=32, n_sel=3, w=48)

MODEL = ModelConfig(nsa=NSA, layers=3, vocab=64)


def loss_and_gradients(model, tokens):
    model.zero_grad()
    loss = chunked_cross_entropy(model.hidden(tokens[:, :-1]), model.head.weight, tokens[:, 1:])
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model, tokens):
    model.grad_checkpointing = False
    plain = loss_and_gradients(model, tokens)
    model.grad_checkpointing = True
    checkpointed = loss_and_gradients(model, tokens)
    assert plain[0] == checkpointed[0]
    assert plain[1].keys() == checkpointed[1].keys()
    for name, gradient in plain[1].items():
        torch.testing.assert_close(checkpointed[1][name], gradient, rtol=1e-12, atol=1e-15, msg=name)


@pytest.mark.parametrize("config", [MODEL, replace(MODEL, attention="dense"), replace(MODEL, backend="packed")])
def test_gradients_with_and_without_checkpointing_are_equal_in_every_layer(config):
    assert_same_gradients(TinyLM(config).double(), torch.randint(64, (2, 131)))


def test_a_layer_that_is_bound_late_is_seen():
    model = TinyLM(MODEL).double()

    def late(block, x, grad_checkpointing):
        if not grad_checkpointing:
            return block(x)
        # Forward runs without gradients, and backward computes again with the last layer in place of each.
        again = lambda y: (model.blocks[-1] if torch.is_grad_enabled() else block)(y)  # noqa: E731
        return checkpoint(again, x, use_reentrant=True)

    model.run_block = late
    with pytest.raises(AssertionError):
        assert_same_gradients(model, torch.randint(64, (2, 131)))


def test_checkpointing_keeps_less_for_backward():
    kept = []
    model, tokens = TinyLM(MODEL), torch.randint(64, (1, 128))
    for model.grad_checkpointing in (False, True):
        kept.append(0)

        def count(tensor):
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.hidden(tokens)
    assert kept[1] < kept[0] / 5


@pytest.mark.parametrize("attention", ["nsa", "dense"])
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(attention):
    model = TinyLM(replace(MODEL, attention=attention), grad_checkpointing=True)
    for name, gradient in loss_and_gradients(model, torch.randint(64, (1, 257)))[1].items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


def test_the_first_loss_is_that_of_a_guess():
    tokens = torch.randint(64, (4, 129))
    loss = torch.nn.functional.cross_entropy(TinyLM(MODEL)(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(64)) < 0.05


def test_no_logit_depends_on_a_later_token():
    model, tokens = TinyLM(MODEL).double(), torch.randint(64, (1, 150))
    edited = tokens.clone()
    edited[0, 100] = (edited[0, 100] + 1) % 64
    before, after = model(tokens), model(edited)
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100:], after[:, 100:])


def test_the_dense_yardstick_is_causal_softmax_attention():
    layer, x = DenseAttention(NSA).double(), torch.randn(1, 19, 32, dtype=torch.float64)
    q, k, v = layer.qkv(x)[0].split([32, 16, 8], dim=-1)

    def rotate(rows, width):
        out = rows.clone().unflatten(-1, (-1, width))
        for t in range(19):
            for i in range(width // 2):
                angle = t / 10000 ** (2 * i / width)
                a, b = rows.unflatten(-1, (-1, width))[t, :, i], rows.unflatten(-1, (-1, width))[t, :, i + width // 2]
                out[t, :, i] = a * math.cos(angle) - b * math.sin(angle)
                out[t, :, i + width // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    q, k, v = rotate(q, 8), rotate(k, 8), v.unflatten(-1, (-1, 4))
    rows = []
    for t in range(19):
        heads = []
        for h in range(4):
            p = (k[: t + 1, h // 2] @ q[t, h] / math.sqrt(8)).softmax(0)
            heads.append(p @ v[: t + 1, h // 2])
        rows.append(torch.cat(heads))
    torch.testing.assert_close(layer(x)[0], layer.out(torch.stack(rows)))


def test_scores_decide_for_at_least_two_fifths_of_the_laptops_rows():
    profile = QUESTIONS["smoke"].request.profiles["laptop"]
    names = ("dim", "heads", "groups", "d_k", "d_v", "l", "d", "l_sel", "n_sel", "w", "phi")
    nsa = NSAConfig(**{name: profile[name] for name in names})
    model = TinyLM(ModelConfig(nsa=nsa, layers=1, vocab=profile["vocab"]))
    x = model.embedding(torch.randint(profile["vocab"], (1, profile["seq_len"])))
    chosen = model.blocks[0].attention.select(x)
    own = torch.arange(profile["seq_len"]) // profile["l_sel"]
    fixed = (chosen == 0) | (chosen == own[:, None]) | (chosen == own[:, None] - 1) | (chosen < 0)
    visible = own + 1
    decided = (~fixed).any(-1) & (visible > profile["n_sel"])
    assert decided.float().mean() >= 0.4
