"""Honest steps pass; what is wrong in a step, at lengths above 400 alone, is found by its name."""

import json
from functools import wraps

import pytest
import torch

from nsa_lib.subject import training
from nsa_lib.subject.attention import BACKENDS, fused
from nsa_lib.subject.attention import module as attention_module
from nsa_lib.subject.attention.module import NSAttention
from nsa_lib.worker.attestation.recorder import Recorder
from tests.worker.attestation import attested
from tests.worker.attestation.attested import LENGTH, config, judged, wrong

BEYOND = 400
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


def all_parts(layer):
    return (*layer.parts.values(), *layer.gradients.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("backend", ["masked", "gather", "packed"])
def test_an_honest_step_passes(backend, dtype, seed):
    found = judged(config(backend=backend), dtype=dtype, seed=seed)
    assert wrong(found) == set()
    assert found.not_compared == []
    assert all(part.telling == part.rows for layer in found.layers for part in all_parts(layer))
    assert max(part.ratio for layer in found.layers for part in all_parts(layer)) < 0.6


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (dict(groups=1, d_v=24, w=100), dict(length=413, batch=2)),
        (dict(groups=4, l=32, d=8, l_sel=32, n_sel=3), dict(length=501, grad_checkpointing=False)),
        (dict(phi="mean", l=8, layers=1), dict(length=439, steps=4)),
        (dict(w=1, l=16, l_sel=64), dict(length=430, batch=3)),
        (dict(l_sel=32, l=32), dict(length=35)),
        (dict(branches=("slc", "win")), dict(length=450)),
    ],
    ids=["one group", "groups are heads", "mean, later step", "narrow window", "hardly a block", "two branches"],
)
def test_an_honest_step_of_another_shape_passes(sizes, options, dtype):
    found = judged(config(**sizes), dtype=dtype, **options)
    # Parameters that compress nothing, or only rank, have no gradient and no business in it.
    assert {name for name in wrong(found) if "phi_" not in name and "key_cmp" not in name} == set()
    assert not any(found.wrong()[area] for area in ("attention", "choice", "backward"))


def test_an_honest_step_of_fused_passes(plain_fused):
    found = judged(config(backend="fused"))
    assert wrong(found) == set()
    assert {"cmp", "slc", "win", "branch_gates", "output", "d_x"} <= {
        *found.layers[0].parts,
        *found.layers[0].gradients,
    }


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_where_every_token_is_the_same_gradients_tell_nothing(dtype):
    """Keys then have no gradient but what rounding leaves, in bfloat16 none at all."""
    found = judged(config(), dtype=dtype, vocab=1, batch=2)
    assert wrong(found) == set()
    assert {(part.area, part.layer) for part in found.not_compared} == {("backward", 1), ("backward", 2)}
    assert "every token" in found.not_compared[0].why_not


def test_what_is_found_is_json():
    found = judged(config(layers=1))
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["compared"] == found.compared


SHARES = ("overlap", "forced", "in_window", "near_ties", "never_picked")


@pytest.mark.parametrize("backend", ["masked", "packed"])
def test_what_a_selection_is_worth_is_found_of_the_recorded_step(backend):
    found = judged(config(backend=backend))
    for layer in found.layers:
        assert layer.health.choosing == pytest.approx(1 - 5 * 16 / LENGTH)
        assert all(0 <= getattr(layer.health, share) <= 1 for share in SHARES)
        assert 0 < layer.health.overlap < 1
        assert layer.health.forced == pytest.approx(3 / 5)
        assert layer.health.shut == layer.health.wide_open == {"cmp": 0, "slc": 0, "win": 0}


def test_by_which_way_kernels_went_is_recorded_of_all_tiles(plain_fused, monkeypatch):
    right = plain_fused.nsa

    def deciding(*tensors, config, observe=None):
        def told(name, value, **beside):
            tiles = torch.arange(200).expand(1, 2, 200) % 4 == 0
            return observe(name, value, **beside, by_union=tiles)

        return right(*tensors, config=config, observe=None if observe is None else told)

    monkeypatch.setattr(plain_fused, "nsa", deciding)
    found = judged(config(backend="fused"))
    assert wrong(found) == set()
    assert [layer.health.by_union for layer in found.layers] == [0.25, 0.25]


def test_a_choice_that_always_takes_the_windows_blocks_is_seen(monkeypatch):
    newest = torch.arange(29.0)
    right = attention_module.choose_blocks
    monkeypatch.setattr(
        attention_module, "choose_blocks", lambda scores, **sizes: right(newest.expand_as(scores), **sizes)
    )
    assert [layer.health.in_window for layer in judged(config(w=5 * 16)).layers] == [1, 1]
    assert [layer.health.in_window for layer in judged(config(w=2 * 16)).layers] == [0, 0]


def test_ties_are_seen(monkeypatch):
    honest = attested.trainee

    def silent(*arguments, **options):
        model, optimizer = honest(*arguments, **options)
        model.blocks[0].attention.query.weight.data.zero_()  # all scores of as many tokens are equal
        return model, optimizer

    monkeypatch.setattr(attested, "trainee", silent)
    first, second = judged(config(l=16, d=16)).layers
    assert first.health.near_ties == 1
    assert second.health.near_ties < 0.5


def test_a_gate_stuck_at_0_is_seen(monkeypatch):
    right = NSAttention.project

    def shut(self, x):
        parts = right(self, x)
        return parts | {"branch_gates": parts["branch_gates"] * torch.tensor([1.0, 0.0, 1.0])}

    monkeypatch.setattr(NSAttention, "project", shut)
    assert [layer.health.shut for layer in judged(config()).layers] == [{"cmp": 0, "slc": 4, "win": 0}] * 2


def beyond(honest, spoilt):
    """Call `spoilt` in the place of `honest` for sequences longer than BEYOND."""

    @wraps(honest)
    def either(x, *arguments, **more):
        return (spoilt if x.shape[2] > BEYOND else honest)(x, *arguments, **more)

    return either


def replaced(monkeypatch, name, spoil):
    """Spoil a function that a layer calls, for long sequences."""
    honest = getattr(attention_module, name)
    monkeypatch.setattr(attention_module, name, beyond(honest, spoil(honest)))


def names(kind, layers=(1, 2)):
    return {f"layer {layer} {kind}" for layer in layers}


def test_a_window_a_quarter_as_wide_is_found(monkeypatch):
    replaced(monkeypatch, "sliding_attention", lambda honest: lambda q, k, v, w: honest(q, k, v, w=w // 4))
    found = judged(config())
    assert names("win") <= wrong(found)
    assert not wrong(found) & (names("cmp") | names("slc") | names("choice"))


def test_a_window_one_token_short_is_found_in_bfloat16(monkeypatch):
    replaced(monkeypatch, "sliding_attention", lambda honest: lambda q, k, v, w: honest(q, k, v, w=w - 1))
    assert names("win") <= wrong(judged(config(), dtype=BFLOAT16))


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_a_choice_of_the_worst_blocks_is_found(monkeypatch, dtype):
    replaced(monkeypatch, "choose_blocks", lambda honest: lambda scores, **sizes: honest(-scores, **sizes))
    found = judged(config(), dtype=dtype)
    assert wrong(found) == names("choice")
    assert found.layers[0].choice.given_away_percent > 1


def test_the_second_best_block_in_the_last_row_is_found(monkeypatch):
    def spoil(honest):
        def choose(scores, **sizes):
            scores = scores.clone()
            row = scores[:, :, -1:]
            return torch.cat([honest(scores, **sizes)[:, :, :-1], honest(
                torch.cat([scores[:, :, :-1], -row], dim=2), **sizes)[:, :, -1:]], dim=2)  # fmt: skip

        return choose

    replaced(monkeypatch, "choose_blocks", spoil)
    found = judged(config())
    assert wrong(found) == names("choice")
    assert found.layers[0].choice.at[-1] == LENGTH - 1


def test_a_choice_of_future_blocks_is_found(monkeypatch):
    def ahead(honest):
        return lambda scores, **sizes: honest(scores.roll(-1, dims=2), **sizes).roll(1, dims=2).roll(-16, dims=2)

    replaced(monkeypatch, "choose_blocks", ahead)
    found = judged(config())
    assert names("choice") <= wrong(found)
    assert found.layers[0].choice.broken


def test_a_window_that_reads_the_future_is_found(monkeypatch):
    def spoil(honest):
        return lambda q, k, v, w: honest(q, k.roll(-1, dims=2), v.roll(-1, dims=2), w=w)

    replaced(monkeypatch, "sliding_attention", spoil)
    assert names("win") <= wrong(judged(config()))


def test_one_wrong_layer_is_found_and_named(monkeypatch):
    honest = NSAttention.branch_by_branch

    def mixed(layer, parts):
        return honest(layer, parts) * (1.05 if layer is mixed.wrong else 1.0)

    monkeypatch.setattr(NSAttention, "branch_by_branch", mixed)

    def step(model, *arguments, **more):
        mixed.wrong = model.blocks[1].attention
        return training.train_step(model, *arguments, **more)

    found = judged(config(layers=3), step=step, dtype=BFLOAT16)
    assert "layer 2 output" in wrong(found)
    assert not any(name.startswith(("layer 1", "layer 3")) for name in wrong(found))


def test_a_later_batch_entry_that_is_wrong_is_found(monkeypatch):
    def spoil(honest):
        return lambda q, k, v, w: honest(torch.cat([q[:2], q[2:] * 1.5]), k, v, w=w)

    replaced(monkeypatch, "sliding_attention", spoil)
    found = judged(config(layers=1), batch=3)
    assert "layer 1 win" in wrong(found)
    assert found.layers[0].parts["win"].at[0] == 2


def test_the_last_row_alone_wrong_is_found(monkeypatch):
    def spoil(honest):
        def attend(q, k, v, w):
            out = honest(q, k, v, w=w)
            return torch.cat([out[:, :, :-1], out[:, :, -2:-1]], dim=2)

        return attend

    replaced(monkeypatch, "sliding_attention", spoil)
    found = judged(config(), dtype=BFLOAT16)
    assert names("win") <= wrong(found)
    assert found.layers[0].parts["win"].at == (0, LENGTH - 1)


class SpoiltGradient(torch.autograd.Function):
    """The identity, whose gradient is scaled in the last rows."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[:, :, -40:] *= 1.5
        return gradient


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("which", ["k", "v"])
def test_a_backward_that_scales_the_last_keys_is_found(monkeypatch, which, dtype):
    honest = BACKENDS["packed"]

    def attend(q, k, v, blocks, **sizes):
        k, v = (SpoiltGradient.apply(x) if name == which else x for name, x in (("k", k), ("v", v)))
        return honest(q, k, v, blocks, **sizes)

    monkeypatch.setitem(BACKENDS, "packed", attend)
    found = judged(config(backend="packed"), dtype=dtype)
    assert not found.wrong()["attention"]
    assert names("d_x") <= wrong(found)
    assert names({"k": "d_key_slc.weight", "v": "d_value_slc.weight"}[which]) <= wrong(found)


def test_a_fault_in_one_dtype_is_found_in_that_dtype(monkeypatch):
    def spoil(honest):
        return lambda q, k, v, w: honest(q, k, v * (1.1 if v.dtype == BFLOAT16 else 1), w=w)

    replaced(monkeypatch, "sliding_attention", spoil)
    assert wrong(judged(config(), dtype=FLOAT32)) == set()
    assert names("win") <= wrong(judged(config(), dtype=BFLOAT16))


def test_zeros_are_found_everywhere(monkeypatch):
    honest = NSAttention.branch_by_branch
    monkeypatch.setattr(NSAttention, "branch_by_branch", lambda layer, parts: honest(layer, parts) * 0)
    found = judged(config(layers=1))
    assert {"layer 1 output", "layer 1 d_x", "layer 1 d_out.weight"} <= wrong(found)
    assert "gradient blocks.0.attention.out.weight" in wrong(found)


def test_swapped_rows_are_found(monkeypatch):
    replaced(monkeypatch, "sliding_attention", lambda honest: lambda q, k, v, w: honest(q, k, v, w=w).roll(1, dims=2))
    assert names("win") <= wrong(judged(config(), dtype=BFLOAT16))


def test_a_head_that_has_the_keys_of_another_group_is_found(monkeypatch):
    replaced(monkeypatch, "sliding_attention", lambda honest: lambda q, k, v, w: honest(q, k.flip(1), v, w=w))
    assert names("win") <= wrong(judged(config(), dtype=BFLOAT16))


def test_a_recomputation_that_differs_is_found(monkeypatch):
    honest, calls = NSAttention.branch_by_branch, []

    def mixed(layer, parts):
        calls.append(layer)
        return honest(layer, parts) * (1.01 if calls.count(layer) > 1 else 1.0)

    monkeypatch.setattr(NSAttention, "branch_by_branch", mixed)
    assert names("recomputation") <= wrong(judged(config()))


def test_a_layer_that_shows_no_blocks_is_not_compared(monkeypatch):
    honest = Recorder.show

    def silent(self, index, name, value, beside):
        honest(self, index, name, value, {part: made for part, made in beside.items() if part != "blocks"})

    monkeypatch.setattr(Recorder, "show", silent)
    found = judged(config())
    assert {(part.area, part.layer) for part in found.not_compared} == {
        (area, layer) for area in ("attention", "choice", "backward") for layer in (1, 2)
    }
    assert found.layers[0].parts == {}


def test_a_choice_of_fused_is_judged(plain_fused, monkeypatch):
    honest = fused.chosen_blocks
    monkeypatch.setattr(fused, "chosen_blocks", lambda q, k, config: honest(-q, k, config=config))
    assert wrong(judged(config(backend="fused"))) == names("choice")
