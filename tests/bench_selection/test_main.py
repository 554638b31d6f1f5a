import json
import sysconfig
from pathlib import Path

import pytest
import torch

from nsa_lib.runs import environment
from nsa_lib.runs.environment import PROJECT
from tests.bench_selection import __main__ as bench
from tests.bench_selection.captured import unpack
from tests.bench_selection.text import text


@pytest.fixture
def quick(monkeypatch):
    """A little text, and the facts of torch without the process that asks for them."""
    monkeypatch.setattr(environment, "torch_facts", lambda: {"torch": torch.__version__, "gpu": None})
    monkeypatch.setattr(bench, "MOST_TEXT", 100_000)


def test_a_dry_run_trains_looks_and_keeps_a_selection(quick, tmp_path, capsys):
    out = tmp_path / "deep" / "selection.json"
    bench.main(["--dry", "--limit-s", "1", "--out", str(out)])
    found = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    case = found["training"]["case"]
    assert (case["seq_len"], case["model"]["layers"], case["model"]["vocab"]) == (256, 2, 256)
    assert len(found["layers"]) == 2
    assert all(value is not None for layer in found["layers"] for value in layer.values())
    steps, loss = found["training"]["curve"][-1]
    assert steps == found["training"]["steps"] >= 1
    assert 0 < loss < 6
    assert unpack(found["captured"]).shape == (4, 256, 4)
    page = out.with_suffix(".md").read_text()
    assert "| layer | overlap |" in page
    assert page in capsys.readouterr().out


def test_without_a_gpu_it_refuses(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        bench.main([])
    assert stop.value.code == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_the_real_plan_is_the_checklists_model_with_fused():
    case = bench.plan(dry=False)
    model = case.model
    assert (model.layers, model.backend, model.nsa.heads, model.nsa.n_sel) == (12, "fused", 12, 16)
    assert (case.seq_len, case.dtype, case.device) == (8192, "bfloat16", "cuda")


def test_the_typical_layer_is_the_median():
    assert bench.typical([0.1, 0.9, 0.5, 0.4, 0.7]) == 2


def test_the_text_is_ours_and_pythons_and_leaves_some_out():
    found = text(most_bytes=10**9)
    whole = found.trained + found.held_out
    ours = (PROJECT / "nsa_lib" / "subject" / "training.py").read_bytes()
    pythons = Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes()
    assert ours in whole
    assert pythons in whole
    assert 0.01 < len(found.held_out) / len(whole) < 0.03
    assert found == text(most_bytes=10**9)
    assert len(text(most_bytes=1000).trained) < 10**6
