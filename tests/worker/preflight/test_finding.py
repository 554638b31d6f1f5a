"""A figure beside its limit: NaN never holds, and the worst error is the one shown."""

import math

import pytest
import torch

from nsa_lib.worker.preflight.against_reference import worst_relative_error
from nsa_lib.worker.preflight.finding import Finding, at_least, at_most, within_budget


def test_a_figure_that_is_not_a_number_never_holds():
    assert not at_most(math.nan, 1.0, "", "").holds
    assert not at_least(math.nan, 1.0, "", "").holds
    assert not within_budget({"a": math.nan, "b": 0.1}, {"a": 1.0, "b": 1.0}).holds
    assert math.isnan(worst_relative_error(torch.tensor([1.0, math.nan]), torch.ones(2)))


def test_the_error_that_uses_most_of_its_budget_is_the_one_shown():
    finding = within_budget({"output": 0.5, "dq": 0.2}, {"output": 1.0, "dq": 0.1})
    assert (finding.measured, finding.limit, finding.holds) == (0.2, 0.1, False)
    assert finding.detail.startswith("dq uses 200 %")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_json_cannot_hold_becomes_text(value):
    assert Finding(value, 1.0, "", "", False).record("x")["measured"] == str(value)


@pytest.mark.parametrize(
    ("errors", "worst", "holds"),
    [
        ({"a": 0.9, "b": 1.5}, "a", True),
        ({"a": 0.5, "b": 1.9}, "b", True),
        ({"a": 1.1, "b": 1.5}, "a", False),
        ({"a": 9.0, "b": math.nan}, "b", False),
        ({"a": math.nan, "b": 9.0}, "a", False),
        ({"a": 0.0, "b": math.inf}, "b", False),
    ],
)
def test_the_worst_error_is_the_one_that_uses_most_of_its_budget(errors, worst, holds):
    found = within_budget(errors, {"a": 1.0, "b": 2.0})
    assert (found.detail.split()[0], found.holds) == (worst, holds)
