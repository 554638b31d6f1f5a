"""Long traces, thinned."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_lib.contract.thinning import thinned


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=400), st.integers(20, 120))
def test_a_thinned_trace_keeps_its_ends_its_extremes_and_its_gaps(values, most):
    values = np.array(values)
    places = thinned(values, most)
    assert len(places) <= most
    assert (np.diff(places) > 0).all()
    if not len(values):
        return
    assert {0, len(values) - 1} <= set(places)
    shown = values[places]
    assert np.isnan(shown).any() == np.isnan(values).any()
    if np.isfinite(values).any():
        assert (np.nanmin(shown), np.nanmax(shown)) == (np.nanmin(values), np.nanmax(values))
