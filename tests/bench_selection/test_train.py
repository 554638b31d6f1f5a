import pytest
import torch

from tests.bench_selection.train import LEAST_RATE, WARM_UP_STEPS, Training, rate


def test_the_rate_warms_up_and_falls():
    assert rate(0, 0.0) == pytest.approx(1 / WARM_UP_STEPS)
    assert rate(WARM_UP_STEPS, 0.0) == 1
    assert rate(10**4, 1.0) == pytest.approx(LEAST_RATE)
    falling = [rate(10**4, x / 10) for x in range(11)]
    assert falling == sorted(falling, reverse=True)


def test_the_curve_is_the_mean_of_neighbours():
    losses = torch.rand(250).tolist()
    curve = Training(losses).curve
    assert len(curve) <= 100
    assert curve[0] == (3, pytest.approx(sum(losses[:3]) / 3))
    assert curve[-1] == (250, losses[-1])
    assert Training([2.0, 1.0]).curve == [(1, 2.0), (2, 1.0)]
