"""Sizes that do not fit each other are refused in one line that names both."""

import json
from dataclasses import replace

import pytest

from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS, ConfigError, ModelConfig, NSAConfig

NSA = NSAConfig(dim=32, heads=4, groups=2, d_k=8, d_v=8, l=16, d=16, l_sel=64, n_sel=4, w=32)

MODEL = ModelConfig(nsa=NSA, layers=1, vocab=64)

CASE = CaseConfig(
    case_id="training", model=MODEL, seq_len=64, batch=1, steps=3, dtype="float32", grad_checkpointing=True, lr=1e-3,
    seed=0, device="cpu",
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"heads": 4, "groups": 3}, ("heads=4", "groups=3")),
        ({"l": 24}, ("l=24", "d=16")),
        ({"l": 32, "l_sel": 40, "d": 8, "w": 8}, None),
        ({"l_sel": 40}, ("l_sel=40", "d=16")),
        ({"l": 128}, ("l=128", "l_sel=64")),
        ({"n_sel": 2}, ("n_sel=2",)),
        ({"d_k": 7}, ("d_k=7",)),
        ({"w": 0}, ("w=0",)),
        ({"phi": "conv"}, ("phi='conv'",)),
        ({"branches": ()}, ("branches=()",)),
        ({"branches": ("cmp", "cmp")}, ("branches",)),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, named):
    if named is None:
        assert replace(NSA, **change).l == 32
        return
    with pytest.raises(ConfigError) as refusal:
        replace(NSA, **change)
    assert all(name in str(refusal.value) for name in named)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seq_len": 0}, "seq_len=0"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"data": "book.txt"}, "vocab=64"),
        ({"compile": True}, "compile=True"),
        ({"compile": "graph"}, "compile=graph, device=cpu"),
        ({"compile": "graph", "device": "cuda", "work": "backward"}, "compile=graph, work=backward"),
        ({"compile": "twice", "device": "cuda"}, "compile='twice': accepts False, True or graph"),
        ({"backends": ()}, r"backends=\(\): accepts one or more of masked"),
        ({"backends": ("masked", "masked")}, "backends=.*accepts one or more of masked"),
        ({"backends": ("fast",)}, "backends=.*accepts one or more of masked"),
        ({"backends": BACKEND_NAMES}, "backend=fused, device=cpu: accepts cuda"),
        ({"model": replace(MODEL, backend="fused")}, "backend=fused, device=cpu: accepts cuda"),
    ],
)
def test_a_case_that_cannot_run_is_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        replace(CASE, **change)


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="masked, gather, packed"):
        replace(MODEL, backend="fast")


def test_a_case_survives_its_file():
    for case in (CASE, replace(CASE, device="cuda", backends=BACKEND_NAMES)):
        assert CaseConfig.from_json(case.to_json()) == case


def test_a_case_from_before_fused_goes_through_the_plain_backends():
    written = json.loads(CASE.to_json())
    del written["backends"]
    assert CaseConfig.from_json(json.dumps(written)).backends == PLAIN_BACKENDS
