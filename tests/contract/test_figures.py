"""The largest figure, against a search by hand; NaN is never passed over."""

import math
from itertools import permutations

import pytest

from nsa_lib.contract.figures import (
    COUNTED,
    counted,
    largest,
    name_of_largest,
    short,
    signed_percent,
    step_time,
    with_unit,
)


def test_the_largest_is_found_wherever_it_stands():
    for figures in permutations([-1.0, 3.0, 2.0]):
        assert largest(figures) == 3.0


@pytest.mark.parametrize("others", [(), (1.0,), (math.inf,), (1.0, -math.inf)])
def test_nan_is_the_largest_wherever_it_stands(others):
    for figures in permutations([*others, math.nan]):
        assert math.isnan(largest(figures))
        named = {str(place): figure for place, figure in enumerate(figures)}
        assert math.isnan(named[name_of_largest(named)])


def test_of_no_figures_nothing_is_known():
    assert math.isnan(largest([]))


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (75420.0, "MiB", "75,420 MiB"),
        (1.0, "MiB", "1 MiB"),
        (1, "steps", "1 step"),
        (1, "stale runs", "1 stale run"),
        (0, "differences", "0 differences"),
        (2000, "steps", "2,000 steps"),
        ("GO", "", "GO"),
        (True, "checks", "True checks"),
    ],
)
def test_a_value_is_written_with_its_unit_in_the_number_that_it_has(value, unit, said):
    assert with_unit(value, unit) == said


def test_one_is_not_many():
    assert [counted(n, "step") for n in (0, 1, 2, 2000)] == ["0 steps", "1 step", "2 steps", "2,000 steps"]
    assert not [unit for unit in COUNTED if with_unit(1, unit).endswith("s")]


@pytest.mark.parametrize(
    ("figure", "digits", "said"),
    [
        (2249.4, 3, "2,249"),
        (962.4, 3, "962"),
        (13.44, 3, "13.4"),
        (0.01234, 3, "0.0123"),
        (112.0, 2, "112"),
        (3.44, 2, "3.4"),
    ],
)
def test_a_short_figure_has_no_exponent_where_it_has_digits_before_its_point(figure, digits, said):
    assert short(figure, digits) == said


def test_a_step_time_is_said_in_milliseconds_until_it_takes_ten_seconds():
    assert [step_time(ms) for ms in (0.52, 383.4, 1500, 11383)] == ["0.52 ms", "383 ms", "1,500 ms", "11.4 s"]


def test_a_difference_that_rounds_to_nothing_has_no_minus():
    said = [signed_percent(percent) for percent in (-0.04, 0.0, 1.25, -11.38)]
    assert said == ["+0.0 %", "+0.0 %", "+1.2 %", "-11.4 %"]
