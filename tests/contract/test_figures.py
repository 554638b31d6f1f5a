"""The largest figure, against a search by hand; NaN is never passed over."""

import math
from itertools import permutations

import pytest

from nsa_lib.contract.figures import largest, name_of_largest


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
