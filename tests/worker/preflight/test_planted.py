"""More faults of the kind that a preflight is there to find: NaN wherever it comes from, and one fault per backend."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nsa_lib.contract.agenda import check_names
from nsa_lib.judgement.gate import FAIL, NOT_RUN
from nsa_lib.runs import environment
from nsa_lib.subject import attention
from nsa_lib.subject.attention import module
from nsa_lib.subject.config import PLAIN_BACKENDS
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import faults, preflight
from nsa_lib.worker.preflight import learning, subject
from nsa_lib.worker.preflight.finding import within_budget
from nsa_lib.worker.preflight.gradients import gradients_of
from tests.subject.test_config import CASE, NSA
from tests.workbook.preflight.test_gates import gate
from tests.workbook.preflight.test_gates import preflight as run_of

NAN, INF = float("nan"), float("inf")

CHECKS = check_names(PLAIN_BACKENDS)

TINY = replace(NSA, l=8, d=4, l_sel=16, w=24)
"""Blocks of keys overlap, and the window is no multiple of a block."""

TINY_CASE = replace(CASE, model=replace(CASE.model, nsa=TINY, layers=2), seq_len=64)

each_backend = pytest.mark.parametrize("backend", PLAIN_BACKENDS)


def with_backend(backend, **changes):
    return replace(TINY_CASE, model=replace(TINY_CASE.model, backend=backend), **changes)


def check_all(case, *names):
    """Run checks of the subject with the case's fault in it."""
    with faults.planted(case):
        checks = preflight.GROUPS["subject"](case, {}, lambda: None)
        return {name: checks[name]() for name in names}


def check(name, case=TINY_CASE):
    return check_all(case, name)[name]


def test_every_check_holds_where_blocks_of_keys_overlap():
    broken = {name: found for name, found in check_all(TINY_CASE, *CHECKS["subject"]).items() if not found.holds}
    assert not broken


@each_backend
def test_reading_the_first_key_alone_is_an_error_of_that_backend_and_no_other(backend):
    names = [f"{kind}_{name}" for kind in ("selected", "attention", "past_slc") for name in PLAIN_BACKENDS]
    found = check_all(with_backend(backend, fault="first_key"), *names)
    assert {name for name in names if not found[name].holds} == {n for n in names if n.endswith(backend)}


@each_backend
def test_a_backend_that_runs_anothers_code_is_found(backend):
    found = check(f"route_{backend}", with_backend(backend, fault="wrong_backend"))
    assert (found.holds, found.limit) == (False, backend)
    assert found.measured in set(PLAIN_BACKENDS) - {backend}


@each_backend
def test_a_backend_that_names_no_route_is_found(monkeypatch, backend):
    monkeypatch.setitem(attention.BACKENDS, backend, lambda q, k, v, blocks, **named: v.repeat_interleave(2, dim=1))
    assert (check(f"route_{backend}").measured, check(f"route_{backend}").holds) == ("none", False)


@each_backend
def test_a_backend_that_gives_nan_is_found(monkeypatch, backend):
    original = attention.BACKENDS[backend]
    monkeypatch.setitem(attention.BACKENDS, backend, lambda *parts, **named: original(*parts, **named) * NAN)
    names = [f"{kind}_{backend}" for kind in ("selected", "attention", "future", "past_slc")]
    assert not any(found.holds for found in check_all(TINY_CASE, *names).values())


@each_backend
def test_selection_by_the_future_is_found_with_each_backend(backend):
    assert not check(f"future_{backend}", replace(TINY_CASE, fault="future_leak")).holds


def test_a_selected_branch_that_leaves_out_its_last_block_is_found(monkeypatch):
    original = attention.BACKENDS["gather"]

    def fewer(q, k, v, block_indices, **named):
        return original(q, k, v, block_indices.masked_fill(block_indices == block_indices.max(), -1), **named)

    monkeypatch.setitem(attention.BACKENDS, "gather", fewer)
    assert not check("past_slc_gather").holds


def test_blocks_ranked_the_wrong_way_round_are_found(monkeypatch):
    original = module.choose_blocks
    monkeypatch.setattr(module, "choose_blocks", lambda scores, **sizes: original(-scores, **sizes))
    assert check("selection").measured > 0


def test_scores_that_are_off_are_found_though_they_choose_the_same_blocks(monkeypatch):
    original = subject.block_scores
    monkeypatch.setattr(subject, "block_scores", lambda p_cmp, **sizes: original(p_cmp, **sizes) * (1 + 1e-5))
    found = check("selection")
    assert (found.measured, found.holds) == (0, False)


def test_a_compressed_block_that_is_seen_before_its_end_is_found(monkeypatch):
    original = module.compressed_probabilities
    monkeypatch.setattr(module, "compressed_probabilities", lambda q, k, *, l, d: original(q, k, l=l - 1, d=d))
    assert not check("future_masked").holds


def test_an_edit_that_moves_nothing_is_found(monkeypatch):
    monkeypatch.setattr(TinyLM, "hidden", lambda model, tokens: torch.ones(*tokens.shape, 4))
    found = check("future_masked")
    assert (found.holds, found.measured) == (False, 0.0)
    assert "did not move its own row" in found.detail


# Rotation

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


def patch_project(monkeypatch, name, change):
    """Let every layer's projection of that name pass through `change`."""
    original = module.NSAttention._project

    def project(layer, x):
        return {n: change(part) if n == name else part for n, part in original(layer, x).items()}

    monkeypatch.setattr(module.NSAttention, "_project", project)


@pytest.mark.parametrize("key", ["key_slc", "key_win"])
def test_nan_in_the_keys_of_either_branch_is_found(monkeypatch, key):
    patch_project(monkeypatch, key, lambda part: part * NAN)
    found = check("rope_distance")
    assert (found.holds, found.record("rope_distance")["measured"]) == (False, "nan")


# Gradients


@pytest.mark.parametrize("spoil", [lambda g: None, lambda g: g * NAN, torch.zeros_like])
def test_a_gradient_that_is_missing_or_nan_or_zero_is_named(monkeypatch, spoil):
    original = gradients_of

    def spoiled(model, tokens):
        gradients = original(model, tokens)
        return gradients | {"head.weight": spoil(gradients["head.weight"])}

    monkeypatch.setattr(subject, "gradients_of", spoiled)
    found = check("gradients")
    assert (found.measured, found.holds) == (1, False)
    assert found.detail.endswith(": head.weight")


def test_a_gradient_that_is_nan_with_checkpointing_alone_is_found(monkeypatch):
    original = gradients_of

    def spoiled(model, tokens):
        gradients = original(model, tokens)
        return gradients | ({"head.weight": gradients["head.weight"] * NAN} if model.grad_checkpointing else {})

    monkeypatch.setattr(subject, "gradients_of", spoiled)
    assert check("checkpointing").detail.startswith("head.weight uses nan %")
    assert not check("checkpointing").holds


def test_a_dead_parameter_leaves_a_branch_without_it_as_it_is():
    assert check("past_win", replace(TINY_CASE, fault="dead_parameter")).holds


# Learning


@pytest.mark.parametrize("first_bad", [0, 50, 99])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_loss_on_fresh_tokens_that_stops_being_a_number_is_found(monkeypatch, bad, first_bad):
    guess = math.log(learning.FRESH_VOCAB)
    losses = iter([guess] * first_bad + [bad] * (learning.FRESH_STEPS - first_bad))
    monkeypatch.setattr(
        learning.training, "train_step", lambda *arguments: SimpleNamespace(loss=torch.tensor(next(losses)))
    )
    found = learning.loss_stays(TINY_CASE, lambda: None)
    assert (found.holds, found.record("loss_fresh_tokens")["measured"]) == (False, "nan")


@pytest.mark.parametrize(("last", "holds"), [(4.0, True), (4.12, False), (4.3, False), (NAN, False), (INF, False)])
def test_the_loss_on_a_fixed_batch_must_fall_by_a_percent(monkeypatch, last, holds):
    losses = iter([4.15] * (learning.FIXED_STEPS - 1) + [last])
    monkeypatch.setattr(
        learning.training, "train_step", lambda *arguments: SimpleNamespace(loss=torch.tensor(next(losses)))
    )
    assert learning.loss_falls(learning.Training(TINY_CASE), {}, lambda: None).holds == holds


def test_the_gates_of_the_layer_that_moved_least_decide(monkeypatch):
    trained = learning.Training(TINY_CASE)
    moved = trained.gates_before.clone()
    monkeypatch.setattr(trained, "gates", lambda: moved)
    moved[0] += 0.1
    found = learning.gates_move(trained)
    assert (found.holds, found.measured) == (False, 0.0)
    assert "layer 1" in found.detail
    moved[1, 0, 0, 0] += 0.1
    assert learning.gates_move(trained).holds
    moved[0, 0, 0, 0] = NAN
    assert not learning.gates_move(trained).holds


def test_a_training_inside_a_check_shows_life_at_every_step(monkeypatch):
    monkeypatch.setattr(learning.training, "train_step", lambda *arguments: SimpleNamespace(loss=torch.tensor(1.0)))
    beats = []
    checks = preflight.GROUPS["learning"](TINY_CASE, {}, lambda: beats.append(1))
    checks["loss_fixed_batch"]()
    checks["loss_fresh_tokens"]()
    assert len(beats) == learning.FIXED_STEPS + learning.FRESH_STEPS


# Findings and gates


@pytest.mark.parametrize(
    ("errors", "worst", "holds"),
    [
        ({"a": 0.9, "b": 1.5}, "a", True),
        ({"a": 0.5, "b": 1.9}, "b", True),
        ({"a": 1.1, "b": 1.5}, "a", False),
        ({"a": 9.0, "b": NAN}, "b", False),
        ({"a": NAN, "b": 9.0}, "a", False),
        ({"a": 0.0, "b": INF}, "b", False),
    ],
)
def test_the_worst_error_is_the_one_that_uses_most_of_its_budget(errors, worst, holds):
    found = within_budget(errors, {"a": 1.0, "b": 2.0})
    assert (found.detail.split()[0], found.holds) == (worst, holds)


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in CHECKS.items() for name in names])
def test_every_check_has_a_gate_that_fails_and_one_that_does_not_run(group, name):
    assert gate(run_of(checks={name: {"holds": False}}), name).outcome == FAIL
    assert gate(run_of(without=(name,)), name).outcome == NOT_RUN


@pytest.mark.parametrize("holds", [None, "true", 1, 0])
def test_only_true_is_a_pass(holds):
    assert gate(run_of(checks={"gradients": {"holds": holds}}), "gradients").outcome == FAIL


@pytest.mark.parametrize(
    "fact", ["torch", "disk_free_mib", "cuda_usable", "driver", "bf16_supported", "gpu_memory_mib"]
)
def test_a_fact_that_is_not_there_is_no_pass(fact):
    names = {"disk_free_mib": "disk_free", "cuda_usable": "gpu", "bf16_supported": "bf16",
             "gpu_memory_mib": "gpu_memory_free"}  # fmt: skip
    run = run_of()
    del run.info["environment"][fact]
    found = gate(run, names.get(fact, fact))
    assert (found.outcome, found.required) == (NOT_RUN, True)


# nvidia-smi itself


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Put an nvidia-smi that is a shell script alone on PATH."""

    def put(script):
        fake = tmp_path / "bin" / "nvidia-smi"
        fake.parent.mkdir()
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", str(fake.parent))

    return put


def test_the_processes_on_the_gpu_are_those_that_the_drivers_tool_names(smi, tmp_path):
    asked = "--query-compute-apps=gpu_uuid,pid,used_gpu_memory,process_name --format=csv,noheader"
    rows = ("GPU-4f2a, 7, 512 MiB, /usr/bin/python, a", "GPU-9999, 8, 5 MiB, b", "[N/A]")
    smi(f"[ \"$*\" = '{asked}' ] || exit 1\n" + "\n".join(f"echo '{row}'" for row in rows))
    room = environment.room(tmp_path, {"gpu_uuid": "4f2a"})
    assert room["gpu_processes"] == ["/usr/bin/python, a (pid 7, 512 MiB)"]
    assert environment.room(tmp_path, {})["gpu_processes"] == []


def test_a_drivers_tool_that_fails_names_no_process(smi, tmp_path):
    smi("echo 'GPU-4f2a, 7, 512 MiB, python'; exit 9")
    assert environment.room(tmp_path, {"gpu_uuid": "4f2a"})["gpu_processes"] == []


def test_without_the_drivers_tool_the_free_disk_is_still_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: SimpleNamespace(free=1500.4 * 2**20))
    assert environment.room(tmp_path, {"gpu_uuid": "4f2a"}) == {"disk_free_mib": 1500, "gpu_processes": []}
