"""A backend, a layer or a choice of blocks that is not what the float64 reference makes of it is found."""

import math

import pytest
import torch

from nsa_lib.subject import attention
from nsa_lib.subject.attention import module
from nsa_lib.subject.config import PLAIN_BACKENDS
from nsa_lib.worker.preflight import against_reference
from nsa_lib.worker.preflight.against_reference import share_given_away
from tests.worker.preflight.planted import (
    TINY_CASE,
    check,
    check_all,
    each_backend,
    found,
    of_fused,
    with_backend,
)


def test_fused_is_judged_by_the_blocks_that_it_chose_itself(plain_fused, monkeypatch):
    """Rounding lets it choose others than the plain backends do; its attention is right all the same."""

    def nearest(q, k_cmp, *, config):
        l_sel, n_sel = config.l_sel, config.n_sel
        own = torch.arange(q.shape[2])[:, None] // l_sel - torch.arange(n_sel).flip(0)
        blocks = torch.where(own < 0, -1, own).sort(descending=True).values
        kept = (blocks >= 0).sum(-1, keepdim=True)
        blocks = torch.where(blocks == (own[:, -1:] - n_sel + 1).clamp(min=0), 0, blocks).masked_fill(blocks < 0, 99)
        blocks = blocks.sort().values.masked_fill(torch.arange(n_sel) >= kept, -1)
        return blocks.int().expand(1, k_cmp.shape[1], -1, -1)

    monkeypatch.setattr(plain_fused, "chosen_blocks", nearest)
    assert of_fused("attention_fused").holds
    assert of_fused("attention_masked").holds
    assert not of_fused("selection_fused").holds


SCORES = torch.tensor([0.9, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64).expand(1, 1, 6, 6)


@pytest.mark.parametrize(
    ("last_row", "share"),
    [
        ([0, 1, 4, 5], 0.0),
        ([0, 2, 4, 5], 0.2),
        ([0, 3, 4, 5], 0.4),
        ([1, 2, 4, 5], math.inf),
        ([0, 1, 2, 5], math.inf),
        ([0, 4, 5, -1], math.inf),
        ([0, 1, 5, 4], math.inf),
        ([0, 4, 4, 5], math.inf),
        ([0, 1, 4, 6], math.inf),
        ([-1, 0, 4, 5], math.inf),
    ],
)
def test_a_choice_is_judged_by_what_it_gives_away(last_row, share):
    chosen = attention.select_blocks(SCORES, l_sel=1, n_sel=4)
    chosen[..., -1, :] = torch.tensor(last_row)
    given_away = share_given_away(chosen, SCORES, l_sel=1)
    assert given_away[0, 0].tolist() == pytest.approx([0, 0, 0, 0, 0, share])


def test_a_block_of_the_future_gives_everything_away():
    chosen = attention.select_blocks(SCORES, l_sel=1, n_sel=4)
    chosen[0, 0, 4] = torch.tensor([0, 3, 4, 5])
    assert share_given_away(chosen, SCORES, l_sel=1)[0, 0].tolist() == [0, 0, 0, 0, math.inf, 0]


def test_a_gradient_that_is_wrong_alone_is_found(monkeypatch):
    """The output is right, so that only a comparison of gradients sees it: what cuDNN did on an H200."""

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.01

    original = attention.BACKENDS["packed"]

    def packed(q, k, v, *more, **named):
        return original(q, Scaled.apply(k), v, *more, **named)

    monkeypatch.setitem(attention.BACKENDS, "packed", packed)
    assert not found("selected_packed").holds
    assert not found("attention_packed").holds
    assert found("attention_gather").holds


@each_backend
def test_reading_the_first_key_alone_is_an_error_of_that_backend_and_no_other(backend):
    names = [f"{kind}_{name}" for kind in ("selected", "attention", "past_slc") for name in PLAIN_BACKENDS]
    found = check_all(with_backend(backend, fault="first_key"), *names)
    assert {name for name in names if not found[name].holds} == {n for n in names if n.endswith(backend)}


@each_backend
def test_a_backend_that_gives_nan_is_found(monkeypatch, backend):
    original = attention.BACKENDS[backend]
    monkeypatch.setitem(attention.BACKENDS, backend, lambda *parts, **named: original(*parts, **named) * math.nan)
    names = [f"{kind}_{backend}" for kind in ("selected", "attention", "future", "past_slc")]
    assert not any(found.holds for found in check_all(TINY_CASE, *names).values())


def test_blocks_ranked_the_wrong_way_round_are_found(monkeypatch):
    original = module.choose_blocks
    monkeypatch.setattr(module, "choose_blocks", lambda scores, **sizes: original(-scores, **sizes))
    assert check("selection").measured > 0


def test_scores_that_are_off_are_found_though_they_choose_the_same_blocks(monkeypatch):
    original = against_reference.block_scores
    monkeypatch.setattr(against_reference, "block_scores", lambda p_cmp, **sizes: original(p_cmp, **sizes) * (1 + 1e-5))
    found = check("selection")
    assert (found.measured, found.holds) == (0, False)
