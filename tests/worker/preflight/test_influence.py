"""A token that reaches a row which may not see it, or misses one that must, is found."""

from dataclasses import replace

import pytest
import torch

from nsa_lib.subject import attention
from nsa_lib.subject.attention import module
from nsa_lib.subject.model import TinyLM
from tests import stand_in
from tests.worker.preflight.planted import (
    TINY_CASE,
    check,
    each_backend,
    found,
    of_fused,
)


@pytest.mark.parametrize("w", [23, 25])
def test_a_window_of_another_width_is_found_in_fused_alone(plain_fused, monkeypatch, w):
    original = stand_in.sliding_attention
    monkeypatch.setattr(stand_in, "sliding_attention", lambda *x, **o: original(*x, **{**o, "w": w}))
    assert not of_fused("past_win_fused").holds
    assert of_fused("past_win").holds


def test_compressed_blocks_seen_too_early_are_found_in_fused_alone(plain_fused, monkeypatch):
    original = stand_in.compressed_attention
    monkeypatch.setattr(stand_in, "compressed_attention", lambda *x, l, **o: original(*x, l=l - 1, **o))
    assert not of_fused("past_cmp_fused").holds
    assert of_fused("past_cmp").holds


@pytest.mark.parametrize("w", [23, 25])
def test_a_window_of_another_width_is_found(monkeypatch, w):
    original = module.sliding_attention
    monkeypatch.setattr(module, "sliding_attention", lambda *parts, **more: original(*parts, **{**more, "w": w}))
    assert not found("past_win").holds


def test_compression_that_leaves_out_the_end_of_a_block_is_found(monkeypatch):
    original = module.compress

    def compress(x, phi, *, l, d):
        return original(x * (torch.arange(x.shape[2]) % d < d - 1)[:, None], phi, l=l, d=d)

    monkeypatch.setattr(module, "compress", compress)
    assert not found("past_cmp").holds


def test_attention_that_sees_the_next_token_is_found(monkeypatch):
    original = module.sliding_attention
    monkeypatch.setattr(
        module, "sliding_attention", lambda q, k, v, w: original(q, k.roll(-1, dims=2), v.roll(-1, dims=2), w=w)
    )
    assert not found("future_gather").holds
    assert not found("past_win").holds


@each_backend
def test_selection_by_the_future_is_found_with_each_backend(backend):
    assert not check(f"future_{backend}", replace(TINY_CASE, fault="future_leak")).holds


def test_a_selected_branch_that_leaves_out_its_last_block_is_found(monkeypatch):
    original = attention.BACKENDS["gather"]

    def fewer(q, k, v, block_indices, **named):
        return original(q, k, v, block_indices.masked_fill(block_indices == block_indices.max(), -1), **named)

    monkeypatch.setitem(attention.BACKENDS, "gather", fewer)
    assert not check("past_slc_gather").holds


def test_a_compressed_block_that_is_seen_before_its_end_is_found(monkeypatch):
    original = module.compressed_probabilities
    monkeypatch.setattr(module, "compressed_probabilities", lambda q, k, *, l, d: original(q, k, l=l - 1, d=d))
    assert not check("future_masked").holds


def test_an_edit_that_moves_nothing_is_found(monkeypatch):
    monkeypatch.setattr(TinyLM, "hidden", lambda model, tokens: torch.ones(*tokens.shape, 4))
    found = check("future_masked")
    assert (found.holds, found.measured) == (False, 0.0)
    assert "did not move its own row" in found.detail


def test_a_dead_parameter_leaves_a_branch_without_it_as_it_is():
    assert check("past_win", replace(TINY_CASE, fault="dead_parameter")).holds
