"""What charts share."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_lib.report.charts.chart import looks, thinned


def test_every_name_has_a_look_of_its_own_and_none_runs_out():
    names = [f"name {number}" for number in range(30)]
    found = looks(names)
    assert list(found) == names
    assert len(set(found.values())) == 30
    assert len(looks(range(1000))) == 1000


def test_a_name_keeps_its_look_when_others_are_added():
    assert looks(["masked", "gather", "masked", "new"]) == {**looks(["masked", "gather"]), "new": looks("abc")["c"]}


# Thinning


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=400), st.integers(20, 120))
def test_a_thinned_trace_keeps_its_ends_its_extremes_and_its_gaps(values, most):
    values = np.array(values)
    places = thinned(values, most)
    assert len(places) <= max(most, 0)
    assert (np.diff(places) > 0).all()
    if not len(values):
        return
    assert {0, len(values) - 1} <= set(places)
    shown = values[places]
    assert np.isnan(shown).any() == np.isnan(values).any()
    if np.isfinite(values).any():
        assert (np.nanmin(shown), np.nanmax(shown)) == (np.nanmin(values), np.nanmax(values))
