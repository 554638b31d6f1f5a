"""The judge knows what a model was asked to be, and takes no word of the model for it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from nsa_lib.subject.config import BRANCHES, PHIS
from nsa_lib.subject.model import Block, TinyLM
from nsa_lib.worker.attestation.shapes import asked_shapes, wrong_shapes
from tests.worker.attestation.attested import config, judged, wrong

SMALL_WINDOW = 24

BRANCH_SETS = [BRANCHES, ("slc", "win"), ("cmp",), ("win",), ("slc",)]


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("branches", BRANCH_SETS, ids=",".join)
@pytest.mark.parametrize("phi", PHIS)
def test_they_are_those_of_the_model_that_is_made(branches, phi):
    asked = config(branches=branches, phi=phi, d_k=8, d_v=24, layers=3)
    assert asked_shapes(asked) == shapes(TinyLM(asked))


def test_of_dense_attention_the_rest_of_the_model_is_known():
    asked = config(attention="dense")
    made = shapes(TinyLM(asked))
    assert wrong_shapes(made, asked) == {}
    made["blocks.1.mlp.0.weight"] = (1, 2)
    assert list(wrong_shapes(made, asked)) == ["blocks.1.mlp.0.weight"]


def test_what_is_missing_more_or_of_another_shape_is_named():
    asked = config(layers=2)
    made = shapes(TinyLM(config(layers=3, w=SMALL_WINDOW)))
    extra = {name for name in made if name.startswith("blocks.2.")}
    assert set(wrong_shapes(made, asked)) == extra
    assert wrong_shapes(made, asked)["blocks.2.mlp.0.weight"] == "nobody asked for it"
    fewer = shapes(TinyLM(config(layers=1)))
    assert set(wrong_shapes(fewer, asked).values()) == {"it is not there"}


def made_otherwise(monkeypatch, change):
    """Let the layer before the last of a model be changed as it is made."""
    original = TinyLM.__init__

    def init(model, *args, **kwargs):
        original(model, *args, **kwargs)
        change(model.blocks[-2])

    monkeypatch.setattr(TinyLM, "__init__", init)


def test_a_layer_with_half_the_window_is_found_although_it_says_so_itself(monkeypatch):
    def halve(block: Block):
        block.attention.config = replace(block.attention.config, w=SMALL_WINDOW)

    made_otherwise(monkeypatch, halve)
    assert {"layer 1 win", "layer 1 output"} <= wrong(judged(config(layers=2)))


@pytest.mark.parametrize(("sizes", "part"), [({"n_sel": 3}, "layer 1 choice"), ({"rope_base": 500.0}, "layer 1 win")])
def test_so_is_one_that_selects_fewer_blocks_or_turns_by_other_angles(monkeypatch, sizes, part):
    def other(block: Block):
        block.attention.config = replace(block.attention.config, **sizes)

    made_otherwise(monkeypatch, other)
    assert part in wrong(judged(config(layers=2)))


def test_an_mlp_of_half_the_width_is_found(monkeypatch):
    def halve(block: Block):
        dim = len(block.norm_mlp.weight)
        block.mlp = nn.Sequential(nn.Linear(dim, 2 * dim, bias=False), nn.SiLU(), nn.Linear(2 * dim, dim, bias=False))

    made_otherwise(monkeypatch, halve)
    assert {"parameter blocks.0.mlp.0.weight", "parameter blocks.0.mlp.2.weight"} <= wrong(judged(config(layers=2)))


def test_a_layer_whose_parameters_have_other_shapes_is_not_compared_and_is_wrong(monkeypatch):
    def widen(block: Block):
        block.attention.phi_k.position = nn.Parameter(torch.zeros(1, 16))

    made_otherwise(monkeypatch, widen)
    found = judged(config(layers=2))
    assert found.shapes == {"blocks.0.attention.phi_k.position": "its shape is [1, 16], asked for is [16, 16]"}
    assert {part.layer for part in found.not_compared} == {1}
