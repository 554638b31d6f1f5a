"""The run's own model learns what it should; a loss or branch gates that move otherwise are found."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nsa_lib.subject import training
from nsa_lib.subject.attention import module
from nsa_lib.worker import faults, preflight
from nsa_lib.worker.preflight import learning
from tests.worker.preflight.planted import (
    CASE,
    CHECKS,
    NSA,
    TINY_CASE,
)


def trained(name, fault="none", **changes):
    case = replace(CASE, case_id="learning", fault=fault, **changes)
    with faults.planted(case):
        checks = learning.learning_checks(case, lambda: None)
        findings = {one: checks[one]() for one in CHECKS["learning"] if name in (one, "all")}
    return findings if name == "all" else findings[name]


def test_the_model_learns_what_it_should_and_keeps_what_it_looks_at():
    findings = trained("all")
    assert all(finding.holds for finding in findings.values()), findings
    shares = torch.tensor(findings["loss_fixed_batch"].facts["attention_map"]["branch_mass"])
    assert shares.shape == (2, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_labels_that_the_model_sees_are_found(monkeypatch):
    assert not trained("loss_fresh_tokens", "unshifted_labels").holds


def test_a_loss_that_does_not_fall_is_found(monkeypatch):
    monkeypatch.setattr(
        learning.training, "make_optimizer", lambda model, lr: torch.optim.SGD(model.parameters(), lr=0.0)
    )
    assert not trained("loss_fixed_batch").holds


def test_branch_gates_that_are_cut_off_are_found(monkeypatch):
    original = module.NSAttention.project

    def project(layer, x):
        return {n: part.detach() if n == "branch_gates" else part for n, part in original(layer, x).items()}

    monkeypatch.setattr(module.NSAttention, "project", project)
    trained_model = learning.Training(replace(CASE, case_id="learning"))
    optimizer = torch.optim.SGD(trained_model.model.parameters(), lr=0.1)
    for _ in range(3):
        trained_model.model.zero_grad()
        tokens = trained_model.tokens
        loss = training.chunked_cross_entropy(
            trained_model.model.hidden(tokens[:, :-1]), trained_model.model.head.weight, tokens[:, 1:]
        )
        loss.backward()
        optimizer.step()
    assert not learning.branch_gates_move(trained_model).holds


def test_a_branch_alone_gives_its_share_of_the_output():
    layer = module.NSAttention(NSA).double()
    x = torch.randn(1, 40, NSA.dim, dtype=torch.float64)
    parts = [learning.branch_alone(layer, branch) for branch in NSA.branches]
    torch.testing.assert_close(sum(part(x) for part in parts), layer(x))


@pytest.mark.parametrize("first_bad", [0, 50, 99])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_on_fresh_tokens_that_stops_being_a_number_is_found(monkeypatch, bad, first_bad):
    guess = math.log(learning.FRESH_VOCAB)
    losses = iter([guess] * first_bad + [bad] * (learning.FRESH_STEPS - first_bad))
    monkeypatch.setattr(
        learning.training, "train_step", lambda *arguments: SimpleNamespace(loss=torch.tensor(next(losses)))
    )
    found = learning.loss_stays(TINY_CASE, lambda: None)
    assert (found.holds, found.record("loss_fresh_tokens")["measured"]) == (False, "nan")


@pytest.mark.parametrize(
    ("last", "holds"), [(4.0, True), (4.12, False), (4.3, False), (math.nan, False), (math.inf, False)]
)
def test_the_loss_on_a_fixed_batch_must_fall_by_a_percent(monkeypatch, last, holds):
    losses = iter([4.15] * (learning.FIXED_STEPS - 1) + [last])
    monkeypatch.setattr(
        learning.training, "train_step", lambda *arguments: SimpleNamespace(loss=torch.tensor(next(losses)))
    )
    assert learning.loss_falls(learning.Training(TINY_CASE), lambda: None).holds == holds


def test_the_gates_of_the_layer_that_moved_least_decide(monkeypatch):
    trained = learning.Training(TINY_CASE)
    moved = trained.branch_gates_before.clone()
    monkeypatch.setattr(trained, "branch_gates", lambda: moved)
    moved[0] += 0.1
    found = learning.branch_gates_move(trained)
    assert (found.holds, found.measured) == (False, 0.0)
    assert "layer 1" in found.detail
    moved[1, 0, 0, 0] += 0.1
    assert learning.branch_gates_move(trained).holds
    moved[0, 0, 0, 0] = math.nan
    assert not learning.branch_gates_move(trained).holds


def test_a_training_inside_a_check_shows_life_at_every_step(monkeypatch):
    monkeypatch.setattr(learning.training, "train_step", lambda *arguments: SimpleNamespace(loss=torch.tensor(1.0)))
    beats = []
    checks = preflight.GROUPS["learning"](TINY_CASE, lambda: beats.append(1))
    checks["loss_fixed_batch"]()
    checks["loss_fresh_tokens"]()
    assert len(beats) == learning.FIXED_STEPS + learning.FRESH_STEPS
