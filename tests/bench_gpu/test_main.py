import json
import math

import pytest
import torch

from nsa_lib.runs import environment
from nsa_lib.runs.provenance import source_sha256
from nsa_lib.workbook.questions import QUESTIONS
from tests.bench_gpu import measure
from tests.bench_gpu.__main__ import main, plan
from tests.bench_gpu.problem import LAYOUTS


@pytest.fixture
def quick_facts(monkeypatch):
    """The facts of torch without the process that asks for them, and no limit on a call: this machine may be busy."""
    monkeypatch.setattr(measure, "CALL_LIMIT_MS", math.inf)
    monkeypatch.setattr(environment, "torch_facts", lambda: {"torch": torch.__version__, "gpu": "none"})


def test_a_dry_run_goes_the_whole_way(plain_fused, quick_facts, tmp_path, capsys):
    out = tmp_path / "deep" / "bench_gpu.json"
    main(["--dry", "--out", str(out)])
    figures = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert figures["environment"]["source_sha256"] == source_sha256(QUESTIONS)
    assert figures["ceilings"]["copy_gb_per_s"] > 0
    assert {check["wrong"] for check in figures["checks"]} == {""}
    assert {check["seq_len"] for check in figures["checks"]} == {233, 256, 512}
    rows = figures["rows"]
    whole = [r for r in rows if (r["part"], r["contestant"]) == ("whole", "fused")]
    assert [(r["seq_len"], r["direction"]) for r in whole] == [
        (256, "forward"), (256, "backward"), (512, "forward"), (512, "backward")
    ]  # fmt: skip
    assert all(r["over_dense"] > 0 and r["over_floor"] > 0 for r in whole)
    steps = {r["contestant"]: r for r in rows if r["part"] == "model"}
    assert set(steps) == {"fused", "masked", "dense"}
    assert steps["masked"]["over_dense"] > 0
    page = out.with_suffix(".html").read_text()
    assert "Time over dense attention" in page
    assert '<script src="http' not in page
    assert "| whole | fused |" in capsys.readouterr().out


def test_without_triton_the_run_goes_on(no_triton, quick_facts, tmp_path, capsys):
    out = tmp_path / "bench_gpu.json"
    main(["--dry", "--quick", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    for row in rows:
        expected = row["contestant"].split(",")[0] in ("fused", "fla-core")
        assert bool(row["reason"]) == expected, row
    assert not [row for row in rows if row["part"] == "model"]


def test_layouts_lengths_and_contestants_can_be_asked_for(plain_fused, quick_facts, tmp_path, monkeypatch):
    tiny = next(iter(plan(quick=True, dry=True).layouts.values()))
    monkeypatch.setitem(LAYOUTS, "tiny", tiny)
    out = tmp_path / "bench_gpu.json"
    main(["--dry", "--layouts", "tiny", "--lengths", "128", "--fused-only", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert {(row["layout"], row["seq_len"]) for row in rows} == {("tiny", 128)}
    assert {row["contestant"].split(",")[0] for row in rows} == {"math", "fused"}
    assert not [row for row in rows if row["part"] == "model"]


def test_what_has_not_begun_in_time_is_skipped_and_says_so(plain_fused, quick_facts, tmp_path, capsys):
    out = tmp_path / "bench_gpu.json"
    main(["--dry", "--limit-s", "0", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert {row["reason"] for row in rows} == {"skipped: the run's 0 s were spent"}
    assert {row["part"] for row in rows} >= {"dense", "whole", "model"}


def test_without_a_gpu_it_refuses(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 1
    assert "no CUDA device" in capsys.readouterr().err


def test_the_real_plans():
    default, quick = plan(quick=False, dry=False), plan(quick=True, dry=False)
    assert list(default.layouts) == ["H=12 G=12 D=64", "H=64 G=4 D=128"]
    assert default.lengths == (2048, 8192, 32768, 65536)
    assert default.dtype == torch.bfloat16
    case = default.case
    assert (case.model.layers, case.model.nsa.heads, case.dtype, case.grad_checkpointing) == (12, 12, "bfloat16", True)
    assert (list(quick.layouts), quick.lengths, quick.case) == (["H=12 G=12 D=64"], (2048, 65536), None)
