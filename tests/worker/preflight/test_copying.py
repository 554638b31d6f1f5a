"""Each branch alone learns its copy task, and one that reads elsewhere does not."""

from dataclasses import replace

import pytest
import torch

from nsa_lib.subject.attention import module
from nsa_lib.worker import faults
from nsa_lib.worker.preflight import copying
from tests.worker.preflight.planted import CASE, CHECKS


def learned(task, fault="none", **changes):
    case = replace(CASE, case_id="copying", fault=fault, **changes)
    with faults.planted(case):
        return copying.copying_checks(case, lambda: None)[task]()


@pytest.mark.parametrize("task", CHECKS["copying"])
def test_each_branch_alone_learns_to_copy(task, monkeypatch):
    monkeypatch.setattr(copying, "STEPS", 120)
    assert learned(task).holds


@pytest.mark.parametrize(
    ("answers", "holds", "said"), [((51.0, 96.1), True, "start 2"), ((13.0, 51.2, 49.0), False, "start 2")]
)
def test_a_start_that_is_stuck_is_followed_by_others(monkeypatch, answers, holds, said):
    starts, left = [], iter(answers)
    monkeypatch.setattr(copying, "_right_percent", lambda case, branch, seed, alive: starts.append(seed) or next(left))
    found = learned("copy_win", seed=7)
    assert (found.holds, found.measured, starts) == (holds, max(answers), [7 + i for i in range(len(answers))])
    assert said in found.detail


def first_block(p_cmp, v_cmp):
    return p_cmp.sum(-1, keepdim=True) * v_cmp[:, :, :1]


@pytest.mark.parametrize(
    ("task", "name", "broken"),
    [
        ("copy_win", "sliding_attention", lambda q, k, v, w: v.roll(w, dims=2)),
        ("copy_cmp", "mix_compressed", first_block),
    ],
)
def test_a_branch_that_reads_elsewhere_does_not_learn_to_copy(monkeypatch, task, name, broken):
    monkeypatch.setattr(copying, "STEPS", 60)
    monkeypatch.setattr(module, name, broken)
    assert not learned(task).holds


def test_a_selected_branch_that_reads_the_first_token_alone_does_not_learn_to_copy(monkeypatch):
    monkeypatch.setattr(copying, "STEPS", 60)
    assert not learned("copy_slc", "first_key").holds


@pytest.mark.parametrize(("fault", "learns"), [("none", True), ("first_key", False)])
def test_the_selected_branch_of_fused_learns_to_copy_in_blocks_that_its_kernels_take(
    plain_fused, monkeypatch, fault, learns
):
    monkeypatch.setattr(copying, "STEPS", 60)
    blocks, right = set(), module.NSAttention.forward

    def seen(layer, x):
        blocks.add(layer.config.l_sel)
        return right(layer, x)

    monkeypatch.setattr(module.NSAttention, "forward", seen)
    assert learned("copy_slc", fault, model=replace(CASE.model, backend="fused")).holds == learns
    assert blocks == {16}


@pytest.mark.parametrize(("task", "others"), [("slc", 2), ("cmp", 0), ("win", 1)])
def test_what_is_to_be_copied_lies_where_the_branch_reads_and_another_where_it_does_not(task, others):
    tokens = copying.SEQUENCES[task](500, torch.Generator().manual_seed(1))
    asked, answer = tokens[:, :-1], tokens[:, -1]
    assert ((answer >= 1) & (answer <= copying.COPIED)).all()
    assert (asked[:, -1] == copying.QUESTION).all()
    assert (asked[:, 0] == 0).all(), "attention that reads the first token alone must not find it"
    blocks = (asked == answer[:, None]).unflatten(1, (-1, copying.BLOCK)).any(-1)
    last = blocks.shape[1] - 1
    if task == "slc":
        assert (blocks[:, 0] | blocks[:, last - 1]).all()
        assert ((asked[:, copying.BLOCK : (last - 1) * copying.BLOCK] > 0).sum(1) == others).all()
    if task == "cmp":
        whole = (asked == answer[:, None]).unflatten(1, (-1, copying.BLOCK)).sum(-1)
        assert (whole.max(1).values >= copying.BLOCK - 1).all()
    if task == "win":
        assert (asked[:, -copying.WINDOW :] == answer[:, None]).any(1).all()
        assert ((asked[:, : -2 * copying.WINDOW] > 0).sum(1) == others).all()
