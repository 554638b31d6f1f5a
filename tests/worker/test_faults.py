"""Each seeded fault does what the table says, and leaves nothing behind."""

import ctypes
import json
import os
import resource
import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nsa_lib.contract.faults import FAULT_STEP, FAULTS
from nsa_lib.contract.heartbeat import Heartbeat, HeartbeatReader
from nsa_lib.subject import attention, training
from nsa_lib.subject.attention import module as attention_module
from nsa_lib.subject.attention import selection
from nsa_lib.subject.config import NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import faults
from nsa_lib.worker.loop import run_to_result
from nsa_lib.worker.profiling import executed_routes
from tests.subject.test_config import CASE


class StruckError(Exception):
    """In the place of what would end the tests."""


def strike(*arguments):
    raise StruckError(*arguments)


def train(folder, fault, *, steps=8, **changes):
    """Run a case with a fault in this process; its result and the beats of its steps."""
    (folder / "case.json").write_text(replace(CASE, fault=fault, steps=steps, **changes).to_json())
    run_to_result(folder / "case.json")
    return json.loads((folder / "result.json").read_text()), beats(folder)


def beats(folder):
    return [beat for beat in HeartbeatReader(folder / "heartbeat.jsonl").read() if beat["step"]]


def model(backend="masked", **changes):
    return replace(CASE.model, backend=backend, **changes)


@contextmanager
def planted(fault, **changes):
    with faults.planted(replace(CASE, fault=fault, **changes)):
        yield


def test_every_fault_of_the_table_can_be_planted():
    assert list(faults.PLANTS) == list(FAULTS)


def in_force():
    return (
        TinyLM.hidden, Heartbeat.beat, training.backward_step, training.chunked_cross_entropy, training.grad_norm,
        selection.choose_blocks, attention_module.choose_blocks, attention.NSAttention._project,
        *attention.BACKENDS.values(), resource.getrlimit(resource.RLIMIT_FSIZE),
    )  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_in_force_inside_its_context_alone(fault):
    before = in_force()
    with planted(fault):
        assert (in_force() == before) == (fault == "none")
    assert in_force() == before


def test_an_unknown_fault_is_an_error():
    with pytest.raises(KeyError):
        planted("leak_13").__enter__()


@pytest.mark.parametrize(("fault", "share"), [("none", 0), ("leak_12", 0.12), ("leak_30", 0.30)])
def test_a_leak_keeps_its_share_of_the_peak_over_fifty_steps(tmp_path, fault, share):
    _, steps = train(tmp_path, fault, steps=60)
    peaks = [beat["peak_alloc_mib"] for beat in steps]
    rounding = 50 * 512 / (peaks[9] * 2**20) if share else 0  # what is kept each step is a multiple of 512 B
    assert share - 1e-3 <= peaks[59] / peaks[9] - 1 <= share + rounding
    assert peaks[5] == peaks[9]


def test_a_creeping_pool_is_reserved_and_not_allocated(tmp_path):
    _, steps = train(tmp_path, "pool_creep", steps=30)
    reserved = [beat["peak_reserved_mib"] for beat in steps]
    assert len({beat["peak_alloc_mib"] for beat in steps[10:]}) == 1
    assert reserved[29] > reserved[19] + 20 > reserved[10] + 40


def test_a_nan_is_in_the_loss_and_an_infinity_in_a_gradient_alone(tmp_path):
    result, steps = train(tmp_path, "nan_loss")
    assert (result["status"], len(steps)) == ("nan", FAULT_STEP)
    assert result["reason"].startswith(f"loss is nan at step {FAULT_STEP}")
    result, steps = train(tmp_path, "inf_gradient")
    assert result["reason"].startswith(f"grad_norm is inf at step {FAULT_STEP}")
    assert steps[-1]["loss"] - steps[-1]["loss"] == 0


@pytest.mark.parametrize("fault", ["hang_forward", "hang_gil", "sigkill", "segfault"])
def test_what_ends_a_case_strikes_in_the_forward_pass_of_its_step(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(time, "sleep", strike)
    monkeypatch.setattr(ctypes, "PyDLL", lambda name: SimpleNamespace(sleep=strike))
    monkeypatch.setattr(ctypes, "string_at", strike)
    monkeypatch.setattr(os, "kill", strike)
    with pytest.raises(StruckError):
        train(tmp_path, fault)
    assert len(beats(tmp_path)) == FAULT_STEP - 1


def test_more_memory_than_there_is_ends_as_oom(tmp_path):
    result, steps = train(tmp_path, "oom")
    assert (result["status"], len(steps)) == ("oom", FAULT_STEP - 1)


def test_hooks_add_operators_and_no_memory(tmp_path):
    result, steps = train(tmp_path, "operator_growth", steps=20, profile_operators=True)
    early, late = (sum(row["count"] for row in result["operators"][when].values()) for when in ("early", "late"))
    assert late == early + 2 * 9, "from the 11th step to the 20th a hook more in each, and its backward"
    assert steps[19]["peak_alloc_mib"] == pytest.approx(steps[10]["peak_alloc_mib"], rel=0.001)


def test_growing_sequences_raise_the_peak(tmp_path):
    _, steps = train(tmp_path, "growing_shapes", steps=20)
    assert steps[19]["peak_alloc_mib"] > 1.1 * steps[9]["peak_alloc_mib"]


@pytest.mark.parametrize(("asked", "ran"), [("masked", "gather"), ("gather", "masked"), ("packed", "gather")])
def test_another_backend_runs_than_the_one_asked_for(tmp_path, asked, ran):
    result, _ = train(tmp_path, "wrong_backend", model=model(asked))
    assert result["routes"] == [ran]


def test_every_query_reads_the_first_token_by_the_route_asked_for(tmp_path):
    q, k, v = torch.randn(1, 4, 8, 8), torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    with planted("first_key", model=model("packed")):
        out = attention.selected_attention(
            q, k, v, torch.zeros(1, 2, 8, 1, dtype=torch.int64), l_sel=4, backend="packed"
        )
    assert torch.equal(out[:, 3], v[:, 1, :1].expand(1, 8, 8))
    result, _ = train(tmp_path, "first_key", model=model("packed"))
    assert result["routes"] == ["packed"]


FUSED_SIZES = NSAConfig(dim=32, heads=4, groups=2, d_k=8, d_v=8, l=16, d=16, l_sel=16, n_sel=4, w=16)


def of_fused(fault):
    """What a layer with `fused` gives, selects and enters with a fault planted, and without."""
    layer, x = attention.NSAttention(FUSED_SIZES, "fused"), torch.randn(1, 150, 32)
    found = []
    for one in ("none", fault):
        with planted(one, model=model("fused", nsa=FUSED_SIZES)):
            output = []
            routes = executed_routes(lambda: output.append(layer(x).detach()))  # noqa: B023
            found.append((*output, layer.select(x), routes))
    return found


@pytest.mark.parametrize(
    ("fault", "moves", "selects_otherwise", "route"),
    [
        ("none", False, False, "fused"),
        ("wrong_backend", False, False, "gather"),
        ("first_key", True, False, "fused"),
        ("future_leak", True, True, "fused"),
    ],
)
def test_a_fault_of_a_backend_reaches_a_layer_with_fused(plain_fused, fault, moves, selects_otherwise, route):
    (right, chosen, _), (wrong, otherwise, ran) = of_fused(fault)
    assert torch.allclose(right, wrong, atol=1e-5) != moves
    assert torch.equal(chosen, otherwise) != selects_otherwise
    assert ran == {route}


def of_fused_in_force():
    return attention.BACKENDS["fused"], attention.fused.chosen_blocks, attention.NSAttention._fused


@pytest.mark.parametrize("fault", ["wrong_backend", "first_key", "future_leak"])
def test_a_fault_of_fused_is_in_force_inside_its_context_alone(fault):
    before = of_fused_in_force()
    with planted(fault, device="cuda", model=model("fused")):
        assert of_fused_in_force() != before
    assert of_fused_in_force() == before


@pytest.mark.parametrize("fault", ["wrong_backend", "first_key"])
def test_a_fault_of_another_backend_leaves_fused_as_it_is(fault):
    before = of_fused_in_force()
    with planted(fault, model=model("masked")):
        assert of_fused_in_force() == before


@pytest.mark.parametrize("fault", ["none", "future_leak"])
def test_a_future_leak_lets_later_scores_choose(fault):
    scores = torch.rand(1, 1, 64, 16)
    other = scores.clone()
    other[:, :, 48:, 5] += 100.0
    with planted(fault):
        before, after = (attention.select_blocks(s, l_sel=4, n_sel=4)[:, :, :48] for s in (scores, other))
    assert torch.equal(before, after) == (fault == "none")


def test_a_layer_bound_late_gets_the_gradients_of_all(tmp_path):
    with pytest.raises(RuntimeError, match=r"no gradient reached blocks\.0\."):
        train(tmp_path, "late_binding", model=model(layers=2))
    result, _ = train(tmp_path, "late_binding", model=model(layers=2), grad_checkpointing=False)
    assert result["status"] == "ok", "nothing is computed again, so nothing can be bound late"


def test_a_dead_parameter_has_a_gradient_of_zeros():
    tiny = TinyLM(CASE.model)
    with planted("dead_parameter"):
        training.backward_step(tiny, torch.randint(64, (1, 65)))
    dead = [name for name, parameter in tiny.named_parameters() if not parameter.grad.any()]
    assert dead == ["blocks.0.attention.key_cmp.weight"]


def test_unshifted_labels_reward_the_token_that_was_given():
    tokens = torch.randint(16, (1, 65))
    hidden, head = torch.nn.functional.one_hot(tokens[:, :-1], 16).float(), 50 * torch.eye(16)
    shifted = training.chunked_cross_entropy(hidden, head, tokens[:, 1:])
    with planted("unshifted_labels"):
        unshifted = training.chunked_cross_entropy(hidden, head, tokens[:, 1:])
    assert shifted > 30
    assert unshifted <= 50 / 64


def test_a_silent_case_trains_to_its_end(tmp_path):
    result, steps = train(tmp_path, "silent_heartbeat")
    assert (result["status"], len(steps)) == ("ok", FAULT_STEP - 1)


def test_a_torn_heartbeat_ends_in_the_middle_of_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "kill", strike)
    with pytest.raises(StruckError) as struck:
        train(tmp_path, "torn_heartbeat")
    assert struck.value.args[1] == signal.SIGKILL
    reader = HeartbeatReader(tmp_path / "heartbeat.jsonl")
    assert [beat["step"] for beat in reader.read()][-1] == FAULT_STEP - 1
    assert reader.torn


def test_a_full_disk_ends_the_case_and_its_last_whole_line_is_kept(tmp_path):
    with pytest.raises(OSError, match=r"bytes of a heartbeat|File too large"):
        train(tmp_path, "disk_full", steps=30)
    assert (tmp_path / "heartbeat.jsonl").stat().st_size == faults.FULL_BYTES
    assert FAULT_STEP < len(beats(tmp_path)) < 30
    assert not (tmp_path / "result.json").exists()
