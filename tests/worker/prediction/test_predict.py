"""Predicted memory against two judges: the tracker of a real run on the CPU, and figures measured on a GPU."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.contract.heartbeat import Heartbeat
from nsa_lib.runs.training_case import training_case
from nsa_lib.subject import training
from nsa_lib.subject.attention import BACKENDS, NSAttention
from nsa_lib.subject.config import OWN, PLAIN_BACKENDS, ConfigError, Own
from nsa_lib.workbook.backward_scaling.cases import scaling_cases
from nsa_lib.workbook.backward_scaling.gates import KNOWN_PEAK_ALLOC_MIB
from nsa_lib.worker.loop import run_case
from nsa_lib.worker.prediction.predict import predict, predict_to_file
from nsa_lib.worker.prediction.record import PredictionError, record
from nsa_lib.worker.prediction.replay import TERMS, replay
from tests.made import resolved
from tests.subject.test_config import CASE

SMALL = replace(CASE, seq_len=256, steps=3, model=replace(CASE.model, layers=2))

TOLERANCE_MIB = 0.1


def measured(case, folder):
    """Run a case for real, on the CPU, and return its highest figures."""
    facts = {}
    for known in run_case(case, Heartbeat(folder / "heartbeat.jsonl")):
        facts.update(known)
    beats = [json.loads(line) for line in (folder / "heartbeat.jsonl").read_text().splitlines()]
    steps = [beat for beat in beats if beat["step"]]
    figures = {name: max(step[name] for step in steps) for name in steps[0] if name.endswith("_mib")}
    return {**figures, "alloc_mib": steps[-1]["alloc_mib"], "state_mib": facts["state_mib"]}


@pytest.mark.parametrize("work", ["train", "backward"])
@pytest.mark.parametrize("grad_checkpointing", [True, False])
@pytest.mark.parametrize("backend", PLAIN_BACKENDS)
def test_the_tracker_of_a_real_run_equals_the_prediction(tmp_path, backend, grad_checkpointing, work):
    model = replace(SMALL.model, backend=backend)
    case = replace(SMALL, model=model, grad_checkpointing=grad_checkpointing, work=work)
    found, expected = predict(case), measured(case, tmp_path)
    figures = [name for name in found if name.endswith("_mib")]
    assert len(figures) == (7 if work == "train" else 6)
    for name in figures:
        assert found[name] == pytest.approx(expected[name], abs=TOLERANCE_MIB), name


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "bfloat16"},
        {"batch": 3},
        {"loss_chunk": 100},
        {"check_attention": True},
        {"alloc_conf": "max_split_size_mb:256"},
        {"model": replace(SMALL.model, attention="dense")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_it_does_so_for_other_cases_too(tmp_path, changes):
    case = replace(SMALL, **changes)
    found, expected = predict(case), measured(case, tmp_path)
    for name in ("peak_alloc_mib", "peak_reserved_mib", "alloc_mib", "state_mib"):
        assert found[name] == pytest.approx(expected[name], abs=TOLERANCE_MIB), name


@pytest.mark.parametrize("length", [128, 512, 1024])
def test_a_gpu_measured_what_is_predicted_without_one(length):
    values = resolved("backward_scaling", {}, profile="checklist")
    (case,) = [case for case in scaling_cases(values, ()) if case.case_id == f"s{length}"]
    known = KNOWN_PEAK_ALLOC_MIB["checklist", "masked"][length]
    assert predict(case)["peak_alloc_mib"] == pytest.approx(known, rel=0.01)


MEASURED_RESERVED_MIB = {
    (4, 2048, 1, True): 1084,
    (12, 2048, 2, True): 1544,
    (12, 2048, 2, False): 3006,
    (12, 1024, 8, False): 5368,
}
"""Of the checklist's model with dense attention, by layers, length, batch and checkpointing; H200, torch 2.11."""


@pytest.mark.parametrize("sizes", MEASURED_RESERVED_MIB)
def test_a_gpu_reserved_what_is_predicted_though_that_depends_on_the_order_of_every_allocation(sizes):
    asked = training_case(resolved("smoke", {"backend": "masked"}, profile="checklist"))
    layers, seq_len, batch, grad_checkpointing = sizes
    model = replace(asked.model.contestant("dense"), layers=layers)
    case = replace(asked, model=model, seq_len=seq_len, batch=batch, grad_checkpointing=grad_checkpointing)
    assert predict(case)["peak_reserved_mib"] == pytest.approx(MEASURED_RESERVED_MIB[sizes], rel=0.002)


@pytest.mark.parametrize("grad_checkpointing", [True, False])
def test_attention_that_checkpointing_computes_again_allocates_as_a_gpu_does_too(grad_checkpointing):
    model = replace(SMALL.model, attention="dense")
    case = replace(SMALL, device="cuda", dtype="bfloat16", model=model, grad_checkpointing=grad_checkpointing)
    nsa, rows = case.model.nsa, case.batch * case.model.nsa.heads * case.seq_len
    workspace = 4 * (rows * nsa.d_k + rows) + 256
    sizes = [nbytes for kind, _, nbytes in record(case, compute_capability="9.0").events if kind == "+"]
    steps = 2
    assert sizes.count(-(-workspace // 512) * 512) == steps * case.model.layers


def test_the_terms_of_each_phase_add_up_to_its_peak_and_say_what_is_held():
    found = predict(replace(SMALL, device="cuda"))
    for phase, terms in found["terms"].items():
        assert tuple(terms) == TERMS
        assert sum(terms.values()) == pytest.approx(found[f"peak_alloc_{phase}_mib"])
    forward, backward, optimizer = (found["terms"][phase] for phase in training.PHASES)
    assert forward["gradients"] == 0 < forward["activations"]
    assert optimizer["gradients"] == pytest.approx(optimizer["parameters"], rel=0.02)  # and the rows that align them
    assert optimizer["optimizer"] == pytest.approx(2 * optimizer["parameters"], rel=0.1)
    assert {terms["workspace"] for terms in (forward, backward, optimizer)} == {64.0}


def test_checkpointing_keeps_fewer_activations_and_an_older_gpu_a_smaller_workspace():
    case = replace(SMALL, device="cuda")
    kept = predict(replace(case, grad_checkpointing=False))["terms"]["forward"]["activations"]
    assert predict(case)["terms"]["forward"]["activations"] < 0.2 * kept
    assert predict(case, compute_capability="8.0")["terms"]["forward"]["workspace"] == 2 * 8.125


@pytest.mark.parametrize("backend", BACKENDS)
def test_checks_before_training_move_workspaces_and_leave_nothing_else(backend):
    case = replace(SMALL, device="cuda", dtype="bfloat16", model=replace(SMALL.model, backend=backend))
    plain, checked = predict(case), predict(replace(case, check_attention=True, compare_selected=True))
    assert checked["alloc_mib"] == plain["alloc_mib"]
    assert plain["terms"]["forward"]["workspace"] == checked["terms"]["forward"]["workspace"] == 64.0
    trace = record(replace(case, check_attention=True), compute_capability="9.0")
    start = trace.events.index(("empty", "", 0))
    dead = {what for kind, what, _ in trace.events[:start] if kind == "-"}
    held = {trace.terms[what] for kind, what, _ in trace.events[:start] if kind == "+" and what not in dead}
    assert held == {"parameters", "workspace"}


def test_each_setting_is_what_a_case_under_it_is_predicted_at():
    found = predict(SMALL)["settings"]
    for name, alloc_conf in ALLOCATOR_SETTINGS.items():
        assert found[name]["peak_reserved_mib"] == predict(replace(SMALL, alloc_conf=alloc_conf))["peak_reserved_mib"]


def test_tables_pass_neither_into_a_prediction_nor_out_of_it():
    attention = NSAttention(SMALL.model.nsa)
    x = torch.randn(1, SMALL.seq_len, SMALL.model.nsa.dim)
    before = attention(x)
    record(SMALL, compute_capability="9.0")
    assert torch.equal(attention(x), before)
    longer = torch.randn(1, SMALL.seq_len + 64, SMALL.model.nsa.dim)
    record(replace(SMALL, seq_len=SMALL.seq_len + 64), compute_capability="9.0")
    assert torch.isfinite(attention(longer)).all(), "its tables are first built after the fake ones"


def test_an_operator_of_ones_own_is_predicted_by_its_registered_fake(monkeypatch):
    @torch.library.custom_op("nsa_test::attended", mutates_args=())
    def attended(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a prediction runs no kernel")

    @attended.register_fake
    def _(q, k):
        return q.new_empty(q.shape)

    attended.register_autograd(lambda ctx, gradient: (gradient.clone(), None))
    monkeypatch.setitem(BACKENDS, "masked", lambda q, k, v, blocks, *, l_sel, scale: attended(q, k))
    found = predict(replace(SMALL, device="cuda", seed=11, seq_len=192))
    assert found["peak_alloc_mib"] > 0


MINE = """
import torch
from torch import nn

@torch.library.custom_op("nsa_test::{name}", mutates_args=())
def untold(x: torch.Tensor) -> torch.Tensor:
    return x.clone()

class Mine(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.out = nn.Linear(dim, dim)
    def forward(self, x):
        return self.out({forward})
"""


def mine(folder, name, forward):
    """Return a case of a user's attention, in a file, whose input goes through `forward`."""
    (folder / f"{name}.py").write_text(MINE.format(name=name, forward=forward))
    own = Own(role="attention", spec=f"{folder}/{name}.py:Mine")
    return replace(SMALL, model=replace(SMALL.model, attention=OWN, own=own))


def told(case, folder):
    """Return what the prediction of a case leaves in its folder."""
    (folder / "case.json").write_text(case.to_json())
    predict_to_file(folder / "case.json", "9.0")
    return json.loads((folder / "prediction.json").read_text())


def test_a_users_attention_is_predicted_as_it_runs(tmp_path):
    case = mine(tmp_path, "plain", "x.cumsum(1)")
    found, real = predict(case), measured(case, tmp_path)
    assert found["peak_alloc_mib"] == pytest.approx(real["peak_alloc_mib"], abs=TOLERANCE_MIB)
    assert found["state_mib"] == pytest.approx(real["state_mib"], abs=TOLERANCE_MIB)


def test_a_users_operator_without_a_fake_is_named_with_how_to_register_one(tmp_path):
    reason = told(mine(tmp_path, "without_fake", "untold(x)"), tmp_path)["reason"]
    assert "nsa_test" in reason
    assert "without_fake" in reason
    assert "register_fake" in reason


def test_so_is_one_that_was_defined_in_a_library(tmp_path):
    with torch.library._scoped_library("nsa_test", "FRAGMENT") as library:
        library.define("defined(Tensor x) -> Tensor")
        library.impl("defined", torch.clone, "CPU")
        case = mine(tmp_path, "of_a_library", "torch.ops.nsa_test.defined(x)")
        assert told(case, tmp_path)["reason"] == (
            "nsa_test.defined.default knows no shapes without values; torch.library.register_fake gives it a fake "
            "implementation"
        )


@pytest.mark.parametrize(
    ("name", "forward", "said"),
    [
        ("numpy", "torch.from_numpy(x.detach().numpy() * 2)", ""),
        ("by_value", "x if float(x.sum()) > 0 else -x", ""),
        ("raises", "{}['kernel']", "KeyError"),
        ("exits", "exit('no GPU')", "SystemExit: no GPU"),
    ],
)
def test_a_users_code_that_needs_values_says_why_there_is_no_prediction(tmp_path, name, forward, said):
    reason = told(mine(tmp_path, f"code_{name}", forward), tmp_path)["reason"]
    assert said in reason
    assert reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compile": True, "device": "cuda"}, "compile=True"),
        ({"work": "timing"}, "work=timing"),
        ({"device_budget_gib": 0.002}, "out of memory on 0.002 GiB"),
    ],
)
def test_a_case_that_cannot_be_predicted_says_why(changes, said):
    with pytest.raises(PredictionError, match=said):
        predict(replace(SMALL, **changes))


def test_a_torch_without_fake_tensors_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._subclasses.fake_tensor", None)
    with pytest.raises(PredictionError, match=r"has no torch\._subclasses\.fake_tensor"):
        record(SMALL, compute_capability="9.0")


def test_a_file_holds_the_prediction_or_the_reason(tmp_path, monkeypatch):
    def written(case):
        (tmp_path / "case.json").write_text(case.to_json())
        predict_to_file(tmp_path / "case.json", "9.0")
        return json.loads((tmp_path / "prediction.json").read_text())

    assert written(SMALL) == predict(SMALL)
    assert "cannot be simulated" in written(replace(SMALL, device="cuda", alloc_conf="a:1"))["reason"]
    monkeypatch.setattr(training, "train_step", lambda *arguments, **more: torch.zeros(3).nonzero())
    assert "nonzero" in written(replace(SMALL, seq_len=320))["reason"]


def test_a_replay_on_a_device_that_is_too_small_runs_out_of_memory():
    trace = record(SMALL, compute_capability="9.0")
    needed = replay(trace, "").peak_reserved_mib
    assert replay(trace, "", capacity_mib=needed).peak_reserved_mib == needed
    with pytest.raises(MemoryError):
        replay(trace, "", capacity_mib=replay(trace, "").peak.alloc_mib - 1)
    with pytest.raises(ConfigError):
        replay(trace, "a:1")


CHECKPOINTED = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

class Layer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
    def forward(self, x, mask):
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return x + self.out(F.scaled_dot_product_attention(q, k, v, {mask}).transpose(1, 2).flatten(2))

class Model(nn.Module):
    on = False
    def __init__(self, vocab, dim, layers):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(Layer(dim) for _ in range(layers))
        self.head = nn.Linear(dim, vocab, bias=False)
    def gradient_checkpointing_enable(self):
        self.on = True
    def forward(self, tokens):
        x, T = self.embedding(tokens), tokens.shape[1]
        mask = torch.ones(1, 1, T, T, dtype=torch.bool).tril()
        for layer in self.layers:
            x = checkpoint(layer, x, mask, use_reentrant=False) if self.on else layer(x, mask)
        return self.head(x)
"""


@pytest.mark.parametrize("mask", ["attn_mask=mask", "mask"])
def test_attention_of_torch_that_backward_computes_again_is_the_one_that_forward_had(tmp_path, mask):
    """`torch.utils.checkpoint` compares what both keep: with another attention in backward it raises."""
    (tmp_path / "mine.py").write_text(CHECKPOINTED.replace("{mask}", mask))
    own = Own(role="model", spec=f"{tmp_path}/mine.py:Model")
    case = replace(SMALL, model=replace(SMALL.model, own=own), device="cuda", dtype="bfloat16")
    off, on = (predict(replace(case, grad_checkpointing=on)) for on in (False, True))
    assert on["terms"]["forward"]["activations"] < off["terms"]["forward"]["activations"]
    assert on["peak_alloc_mib"] < off["peak_alloc_mib"]


def test_a_kernel_that_finds_no_gpu_says_where_and_what_would_make_it_known(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def launch(q):\n    raise RuntimeError('0 active drivers')\n\n"
        "def kernel(q, k, v, block_indices, *, l_sel, scale):\n    return launch(q)\n"
    )
    own = Own(role="backend", spec=f"{tmp_path}/mine.py:kernel")
    reason = told(replace(SMALL, model=replace(SMALL.model, backend=OWN, own=own), backends=(OWN,)), tmp_path)["reason"]
    assert reason == (
        "it does not run on tensors without data: RuntimeError: 0 active drivers in launch, "
        f"{tmp_path}/mine.py:2; as a torch.library.custom_op with register_fake it would"
    )


def test_what_a_kernel_calls_in_triton_is_not_where_a_user_looks(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "launching.py").write_text("def launch(q):\n    raise RuntimeError('0 active drivers')\n")
    (tmp_path / "mine.py").write_text(
        f"import sys\nsys.path.insert(0, '{tmp_path}/triton')\nimport launching\n\n"
        "def kernel(q, k, v, block_indices, *, l_sel, scale):\n    return launching.launch(q)\n"
    )
    own = Own(role="backend", spec=f"{tmp_path}/mine.py:kernel")
    reason = told(replace(SMALL, model=replace(SMALL.model, backend=OWN, own=own), backends=(OWN,)), tmp_path)["reason"]
    assert f" in kernel, {tmp_path}/mine.py:6;" in reason
