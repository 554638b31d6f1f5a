"""The exponents of a backward scaling, and the peak that its train steps predict."""

import numpy as np
import pandas as pd
import pytest

from nsa_lib.workbook.backward_scaling import measures
from tests.workbook.backward_scaling.made import LENGTHS, healthy


@pytest.mark.parametrize("planted", [0.5, 1.0, 1.5, 2.0])
def test_the_exponents_are_the_planted_ones(planted):
    rows = measures.exponent_rows(healthy(exponent=planted, time_exponent=planted)).set_index(
        ["quantity", "first", "last"]
    )
    memory = rows.loc["memory"]
    np.testing.assert_allclose(memory["exponent"], planted, atol=1e-9)
    np.testing.assert_allclose(memory["high"] - memory["low"], 0, atol=1e-6)
    time = rows.loc["time"]
    assert ((time["low"] < planted) & (planted < time["high"])).all()
    assert len(rows) == 2 * (len(LENGTHS) - 1 + 1)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng, lengths = np.random.default_rng(1), np.array([64, 128, 256, 512, 1024])
    hits = segments = 0
    for _ in range(2000):
        points = list(zip(lengths, 3 * lengths**1.3 * np.exp(rng.normal(0, 0.05, len(lengths))), strict=True))
        _, low, high = measures.overall_exponent(points)
        hits += low < 1.3 < high
        _, low, high = measures.segment_exponent(points[0], points[1], 0.05, 0.05)
        segments += low < 1.3 < high
    assert 0.93 < hits / 2000 < 0.97
    assert 0.93 < segments / 2000 < 0.97


def test_points_that_are_no_power_law_get_a_wide_interval_and_two_points_none():
    _, low, high = measures.overall_exponent([(128, 1), (512, 8.7), (1024, 31), (2048, 53)])
    assert high - low > 1
    with pytest.raises(ValueError, match="an interval needs 3"):
        measures.overall_exponent([(128, 1), (512, 4)])


def test_a_peak_that_moves_from_one_phase_to_another_is_predicted():
    layers = np.array([1, 3, 5])
    peaks = {"forward": 900 + 55 * layers, "backward": 820 + 72 * layers, "optimizer": 700 + 72 * layers}
    rows = pd.DataFrame({"layers": layers, **{f"peak_alloc_{phase}_mib": mib for phase, mib in peaks.items()}})
    assert measures.predicted_peak_mib(rows, 12) == pytest.approx(820 + 72 * 12)
    assert measures.predicted_peak_mib(rows[:1], 12) is None
