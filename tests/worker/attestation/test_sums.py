"""Sums by place are held against a loop over the rows."""

import pytest
import torch

from nsa_lib.subject.attention.arithmetic import EXACT, Arithmetic
from nsa_lib.worker.attestation import sums
from nsa_lib.worker.attestation.sums import added


def one_by_one(rows, places, count, most=None):
    """Add rows up by place, rounded to bfloat16 after every one, or after `most` times of those that most rows need."""
    total, turns = torch.zeros(count, rows.shape[1]), int(torch.bincount(places).max())
    for place in range(count):
        own = list(rows[places == place])
        at_once = {}
        for turn, row in enumerate(own):
            at_once.setdefault(turn if most is None else turn * min(turns, most) // turns, []).append(row)
        for part in at_once.values():
            total[place] = (total[place] + torch.stack(part).sum(0)).bfloat16().float()
    return total


def test_sums_by_place_are_exact_or_rounded_after_every_addition():
    rows, places = torch.rand(500, 3, dtype=torch.float64), torch.randint(7, (500,)) + 1
    exact = added(rows, places, 9, EXACT)
    assert torch.allclose(exact, torch.stack([rows[places == i].sum(0) for i in range(9)]))
    rounded = added(rows.float(), places, 9, Arithmetic.of_run(torch.bfloat16))
    assert torch.equal(rounded, one_by_one(rows.float(), places, 9))
    assert not rounded[0].any()


@pytest.mark.parametrize("most", [3, 20])
def test_of_many_some_are_added_at_a_time(monkeypatch, most):
    monkeypatch.setattr(sums, "MOST_ADDITIONS", most)
    # Whole numbers: their sums within a turn are the same in any order.
    rows, places = torch.randint(1, 90, (300, 2)).float(), torch.randint(4, (300,)) ** 2
    rounded = added(rows, places, 10, Arithmetic.of_run(torch.bfloat16))
    assert torch.equal(rounded, one_by_one(rows, places, 10, most))
