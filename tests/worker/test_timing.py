"""Contestants take turns in one process: who, in which order, with which weights, and what is left behind."""

import json
from dataclasses import replace
from itertools import groupby

import pytest
import torch

from nsa_lib.contract.agenda import DENSE, NO_BACKEND, WARMUP_ROUNDS, Contestant, contestants
from nsa_lib.subject.config import BACKEND_NAMES, BRANCHES, PLAIN_BACKENDS
from nsa_lib.worker import timing
from nsa_lib.worker.loop import run_to_result
from nsa_lib.worker.timing import PhaseClock
from tests.subject.test_config import CASE

SEQ_LENS = (32, 64)

FIELD = contestants(64, SEQ_LENS, backends=PLAIN_BACKENDS)

ROUNDS = 2

STEPS = len(FIELD) * (WARMUP_ROUNDS + ROUNDS)

TIMING = replace(
    CASE, case_id="timing", work="timing", seq_lens=SEQ_LENS, steps=STEPS, warmup_steps=len(FIELD) * WARMUP_ROUNDS
)


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """The result and the beats of one timing, and for each turn the module and whether it kept a gradient."""
    folder, turns, measure = tmp_path_factory.mktemp("timing"), [], timing._measure
    (folder / "case.json").write_text(TIMING.to_json())

    def watched(module, inputs, device):
        phases_ms = measure(module, inputs, device)
        tensors = [*module.parameters(), *inputs]
        turns.append((module, any(tensor.grad is not None for tensor in tensors)))
        return phases_ms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_measure", watched)
        run_to_result(folder / "case.json")
    beats = [json.loads(line) for line in (folder / "heartbeat.jsonl").read_text().splitlines()]
    return json.loads((folder / "result.json").read_text()), [beat for beat in beats if beat["step"]], turns


def who(beat):
    return Contestant(*(beat[name] for name in ("subject", "branches", "backend", "seq_len")))


def test_the_contestants_are_every_part_layer_and_model_and_the_sweep():
    found = set(FIELD)
    assert len(found) == len(FIELD) == 3 + 2 + 4 + 4 + 4
    for name in PLAIN_BACKENDS:
        assert {Contestant("layer", "slc", name, 64), Contestant("model", "all", name, 64)} <= found
        assert {Contestant("layer", "all", name, length) for length in SEQ_LENS} <= found
    assert {Contestant("layer", branch, NO_BACKEND, 64) for branch in ("cmp", "win")} <= found
    assert {Contestant(subject, DENSE, DENSE, 64) for subject in ("layer", "model")} <= found
    assert Contestant("layer", DENSE, DENSE, 32) in found


def test_without_other_lengths_nothing_is_swept():
    assert contestants(64, backends=PLAIN_BACKENDS) == contestants(64, (64,), backends=PLAIN_BACKENDS) == FIELD[:-4]


def test_fused_takes_part_where_it_is_one_of_the_backends():
    added = set(contestants(64, SEQ_LENS, backends=BACKEND_NAMES)) - set(FIELD)
    lengths = {("layer", "all", length) for length in SEQ_LENS}
    assert {(c.subject, c.branches, c.seq_len) for c in added} == {("layer", "slc", 64), ("model", "all", 64), *lengths}
    assert {c.backend for c in added} == {"fused"}


def test_each_contestant_has_its_turn_in_every_round_before_any_has_the_next(timed):
    _, beats, _ = timed
    expected = []
    for _, heat in groupby(FIELD, key=lambda contestant: contestant.seq_len):
        expected += [*heat] * (WARMUP_ROUNDS + ROUNDS)
    assert [who(beat) for beat in beats] == expected
    assert [beat["step"] for beat in beats] == list(range(1, STEPS + 1))


def test_the_first_rounds_of_each_contestant_are_warmup_and_the_others_count(timed):
    result, beats, _ = timed
    assert result["status"] == "ok"
    for contestant in FIELD:
        phases = [beat["phase"] for beat in beats if who(beat) == contestant]
        assert phases == ["warmup"] * WARMUP_ROUNDS + ["step"] * ROUNDS


def test_each_beat_has_the_time_of_forward_and_of_backward(timed):
    for beat in timed[1]:
        assert min(beat["forward_ms"], beat["backward_ms"]) > 0
        assert beat["step_ms"] == beat["forward_ms"] + beat["backward_ms"]


def test_no_gradient_stays_after_a_turn(timed):
    _, _, turns = timed
    assert len(turns) == STEPS
    assert not any(kept for _, kept in turns)


def test_a_contestant_is_built_once_and_serves_all_lengths(timed):
    _, beats, turns = timed
    modules = {}
    for beat, (module, _) in zip(beats, turns, strict=True):
        modules.setdefault((beat["subject"], beat["branches"], beat["backend"]), set()).add(id(module))
    assert all(len(built) == 1 for built in modules.values())
    assert len({id(module) for module, _ in turns}) == len(modules) == 3 + 2 + 4 + 4


@pytest.mark.parametrize(("subject", "branches"), [("layer", "slc"), ("layer", "all"), ("model", "all")])
def test_backends_have_the_same_weights_and_give_the_same_output(subject, branches):
    modules = timing._Modules(TIMING)
    built = [modules.of(Contestant(subject, branches, name, 64)) for name in PLAIN_BACKENDS]
    states = [module.state_dict() for module in built]
    assert all(torch.equal(weight, state[name]) for state in states[1:] for name, weight in states[0].items())
    given = timing._inputs(TIMING, 64)[subject][0]
    given = given[:, :-1] if subject == "model" else given
    outputs = [(module.hidden if subject == "model" else module)(given) for module in built]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_a_contestant_is_what_its_name_says():
    modules = timing._Modules(TIMING)
    for contestant in FIELD:
        module = modules.of(contestant)
        assert isinstance(module, timing.TinyLM) == (contestant.subject == "model")
        layers = [block.attention for block in module.blocks] if contestant.subject == "model" else [module]
        for layer in layers:
            assert isinstance(layer, timing.DenseAttention) == (contestant.branches == DENSE)
            if contestant.branches == DENSE:
                continue
            assert layer.config.branches == (BRANCHES if contestant.branches == "all" else (contestant.branches,))
            if contestant.backend != NO_BACKEND:
                assert layer.backend == contestant.backend


def test_the_same_inputs_are_made_each_time_in_the_dtype_of_the_case():
    case = replace(TIMING, dtype="bfloat16")
    first, second = (timing._inputs(case, 32) for _ in range(2))
    for subject in ("layer", "model"):
        assert all(torch.equal(a, b) for a, b in zip(first[subject], second[subject], strict=True))
    x, cotangent = first["layer"]
    assert x.requires_grad
    assert x.shape == cotangent.shape == (1, 32, 32)
    assert x.dtype == cotangent.dtype == torch.bfloat16
    assert first["model"][0].shape == (1, 33)


def test_a_phase_is_timed_from_the_end_of_the_one_before(monkeypatch):
    seconds, marked = iter([10.0, 10.5, 11.0, 13.0, 20.0]), []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(seconds))
    clock = PhaseClock("cpu", marked.append)
    clock.mark("forward")
    clock.mark("backward")
    assert clock.phases_ms == {"forward_ms": 500, "backward_ms": 2000}
    assert marked == ["forward", "backward"]


def test_the_first_turn_of_each_contestant_tells_what_it_entered(timed):
    _, beats, _ = timed
    told = [(who(beat), beat["routes"]) for beat in beats if beat.get("routes") is not None]
    assert [one for one, _ in told] == [one for _, heat in groupby(FIELD, key=lambda c: c.seq_len) for one in heat]
    assert all(routes == one.routes(None) for one, routes in told)
    assert Contestant("model", "all", "packed", 64).routes(None) == ["packed"]
    assert Contestant("model", "all", "own", 64).routes("model") == []
