"""The comparison with float64: near zero for attention that is right, and not for one that is wrong."""

from dataclasses import replace

import pytest
import torch

from nsa_lib.subject.attention import BACKENDS, NSAttention, reference
from nsa_lib.subject.attention import module as attention_module
from nsa_lib.subject.config import PLAIN_BACKENDS, NSAConfig
from nsa_lib.workbook.backend_contrast.gates import ATTENTION_ERROR_LIMIT
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.worker.accuracy import SAMPLED_QUERIES, attention_errors, selected_errors

NSA = NSAConfig(dim=32, heads=4, groups=2, d_k=8, d_v=8, l=16, d=16, l_sel=32, n_sel=4, w=48)


def errors(backend="masked", dtype=torch.float32, config=NSA, length=200):
    return attention_errors(NSAttention(config, backend).to(dtype), length=length)


@pytest.mark.parametrize("dtype", list(ATTENTION_ERROR_LIMIT))
@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
def test_what_is_right_stays_far_below_its_limit(backend, dtype):
    assert max(errors(backend, getattr(torch, dtype)).values()) < ATTENTION_ERROR_LIMIT[dtype] / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_on_a_gpu_the_checklists_layer_stays_below_its_limit(backend, dtype):
    profile = QUESTIONS["smoke"].request.profiles["checklist"]
    names = ("dim", "heads", "groups", "d_k", "d_v", "l", "d", "l_sel", "n_sel", "w", "phi")
    layer = NSAttention(NSAConfig(**{name: profile[name] for name in names}), backend)
    found = attention_errors(layer.to("cuda", getattr(torch, dtype)), length=profile["seq_len"])
    assert max(found.values()) < ATTENTION_ERROR_LIMIT[dtype]


def first_key_only(q, k, v, block_indices, *, l_sel, scale):
    return v[:, :, :1].repeat_interleave(q.shape[1] // v.shape[1], dim=1).expand(-1, -1, q.shape[2], -1)


def rows_read_askew(q, k, v, block_indices, *, l_sel, scale):
    return BACKENDS["masked"](q, k, v.roll(1, dims=2), block_indices, l_sel=l_sel, scale=scale)


def gradient_lost(q, k, v, block_indices, *, l_sel, scale):
    return BACKENDS["masked"](q, k.detach(), v.detach(), block_indices, l_sel=l_sel, scale=scale)


@pytest.mark.parametrize("fault", [first_key_only, rows_read_askew])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_backend_is_far_above_every_limit(monkeypatch, fault, dtype):
    planted = {**BACKENDS, "packed": fault}
    monkeypatch.setattr(attention_module, "BACKENDS", planted)
    assert errors("packed", dtype)["output"] > 2 * max(ATTENTION_ERROR_LIMIT.values())


def test_a_gradient_that_is_lost_is_seen_in_the_gradient(monkeypatch):
    monkeypatch.setattr(attention_module, "BACKENDS", {**BACKENDS, "packed": gradient_lost})
    found = errors("packed")
    assert found["output"] < 1e-5
    assert found["gradient"] > 2 * max(ATTENTION_ERROR_LIMIT.values())


def test_the_layer_itself_is_left_as_it_was():
    layer = NSAttention(replace(NSA, branches=("cmp", "slc")), "gather")
    before = {name: p.clone() for name, p in layer.named_parameters()}
    attention_errors(layer, length=70)
    assert layer.backend == "gather"
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in layer.named_parameters())


def selected(backend, dtype=torch.float32, config=NSA, length=100):
    return selected_errors(NSAttention(config, backend).to(dtype), config, length=length)


@pytest.mark.parametrize("dtype", list(ATTENTION_ERROR_LIMIT))
@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
def test_a_right_selected_branch_stays_far_below_its_limit(backend, dtype):
    found = selected(backend, getattr(torch, dtype))
    assert list(found) == ["output", "dq", "dk", "dv"]
    assert max(found.values()) < ATTENTION_ERROR_LIMIT[dtype] / 2


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_two_heads_have_their_own_groups(groups):
    assert max(selected("gather", config=replace(NSA, groups=groups)).values()) < 1e-5


@pytest.mark.parametrize("fault", [first_key_only, rows_read_askew])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_selected_branch_is_far_above_every_limit(monkeypatch, fault, dtype):
    def planted(q, k, v, block_indices, **options):
        return fault(q, k, v, block_indices, **options) + 0 * (q.sum() + k.sum())  # a graph that reaches q and k

    monkeypatch.setitem(BACKENDS, "packed", planted)
    assert selected("packed", dtype)["output"] > 2 * max(ATTENTION_ERROR_LIMIT.values())


@pytest.mark.parametrize("lost", ["dq", "dk", "dv"])
def test_a_lost_gradient_of_the_selected_branch_is_named(monkeypatch, lost):
    def planted(q, k, v, block_indices, **options):
        tensors = {"dq": q, "dk": k, "dv": v}
        tensors[lost] = 0.5 * tensors[lost] + 0.5 * tensors[lost].detach()
        return BACKENDS["masked"](*tensors.values(), block_indices, **options)

    monkeypatch.setitem(BACKENDS, "packed", planted)
    found = selected("packed")
    assert found.pop(lost) == pytest.approx(0.5, rel=1e-3)
    assert max(found.values()) < 1e-5


def test_the_sampled_queries_reach_from_end_to_end(monkeypatch):
    seen, original = [], reference.selected_attention

    def watched(*tensors, positions, **options):
        seen.append(positions.tolist())
        return original(*tensors, positions=positions, **options)

    monkeypatch.setattr(reference, "selected_attention", watched)
    length = 2 * SAMPLED_QUERIES + 33
    assert max(selected("masked", length=length).values()) < 1e-5
    (places,) = seen
    assert (places[0], places[-1], len(set(places))) == (0, length - 1, SAMPLED_QUERIES)
