"""A wrong route, a wrong rotation, and a gradient that is missing or wrong are found."""

import math

import pytest
import torch

from nsa_lib.subject import attention
from nsa_lib.subject.attention import module
from nsa_lib.subject.config import PLAIN_BACKENDS
from nsa_lib.worker.preflight import gradients
from nsa_lib.worker.preflight.gradients import gradients_of
from tests.worker.preflight.planted import (
    TINY,
    check,
    each_backend,
    found,
    patch_project,
    with_backend,
)


@each_backend
def test_a_backend_that_runs_anothers_code_is_found(backend):
    found = check(f"route_{backend}", with_backend(backend, fault="wrong_backend"))
    assert (found.holds, found.limit) == (False, backend)
    assert found.measured in set(PLAIN_BACKENDS) - {backend}


@each_backend
def test_a_backend_that_names_no_route_is_found(monkeypatch, backend):
    monkeypatch.setitem(attention.BACKENDS, backend, lambda q, k, v, blocks, **named: v.repeat_interleave(2, dim=1))
    assert (check(f"route_{backend}").measured, check(f"route_{backend}").holds) == ("none", False)


def test_rotation_by_another_position_is_found(monkeypatch):
    original = module.apply_rope
    monkeypatch.setattr(
        module, "apply_rope", lambda x, **more: original(x, **more) * (1 + torch.arange(x.shape[2]))[:, None]
    )
    assert not found("rope_distance").holds


def test_no_rotation_at_all_is_found(monkeypatch):
    monkeypatch.setattr(module, "apply_rope", lambda x, **more: x)
    assert not found("rope_distance").holds


ROTATE = module.apply_rope


def of_queries_alone(x, **named):
    return torch.cat([ROTATE(x, **named)[:, : TINY.heads], x[:, TINY.heads :]], dim=1)


def by_another_base(x, *, base, **named):
    slower = ROTATE(x, base=10 * base, **named)
    return torch.cat([ROTATE(x, base=base, **named)[:, : TINY.heads], slower[:, TINY.heads :]], dim=1)


def of_all_heads_as_one(x, **named):
    flat = ROTATE(x.transpose(1, 2).flatten(2), **named)
    return flat.unflatten(-1, (x.shape[1], x.shape[3])).transpose(1, 2)


@pytest.mark.parametrize("rotate", [of_queries_alone, by_another_base, of_all_heads_as_one])
def test_a_rotation_that_is_not_the_same_for_query_and_key_is_found(monkeypatch, rotate):
    monkeypatch.setattr(module, "apply_rope", rotate)
    assert not check("rope_distance").holds


@pytest.mark.parametrize("key", ["key_slc", "key_win"])
def test_nan_in_the_keys_of_either_branch_is_found(monkeypatch, key):
    patch_project(monkeypatch, key, lambda part: part * math.nan)
    found = check("rope_distance")
    assert (found.holds, found.record("rope_distance")["measured"]) == (False, "nan")


def test_a_parameter_without_a_gradient_is_named():
    assert "blocks.0.attention.key_cmp.weight" in found("gradients", "dead_parameter").detail


@pytest.mark.parametrize("spoil", [lambda g: None, lambda g: g * math.nan, torch.zeros_like])
def test_a_gradient_that_is_missing_or_nan_or_zero_is_named(monkeypatch, spoil):
    original = gradients_of

    def spoiled(model, tokens):
        gradients = original(model, tokens)
        return gradients | {"head.weight": spoil(gradients["head.weight"])}

    monkeypatch.setattr(gradients, "gradients_of", spoiled)
    found = check("gradients")
    assert (found.measured, found.holds) == (1, False)
    assert found.detail.endswith(": head.weight")


def test_a_gradient_that_is_nan_with_checkpointing_alone_is_found(monkeypatch):
    original = gradients_of

    def spoiled(model, tokens):
        gradients = original(model, tokens)
        return gradients | ({"head.weight": gradients["head.weight"] * math.nan} if model.grad_checkpointing else {})

    monkeypatch.setattr(gradients, "gradients_of", spoiled)
    assert check("checkpointing").detail.startswith("head.weight uses nan %")
    assert not check("checkpointing").holds
