from statistics import fmean, median_low

import numpy as np
import pytest

from nsa_lib.judgement.trend_windows import Chunked, noise_of, read_windows

BLIND = 1e9
"""A noise under which no value is a spike."""


def slow_reading(window):
    """Read one window with loops and the standard library: growth, rise, and fall."""
    part = len(window) // 10
    tenths = [fmean(window[i * part : (i + 1) * part]) for i in range(10)]
    fifths = [fmean(window[i * part : (i + 2) * part]) for i in range(9)]
    by_fifths = fifths[8] - fifths[0] + (fifths[2] - fifths[0]) / 2 + (fifths[8] - fifths[6]) / 2
    course = [median_low(window[i * part : (i + 2) * part]) for i in range(9)]
    fall = max(course[i] - course[j] for i in range(9) for j in range(i, 9))
    return min((tenths[9] - tenths[0]) / 9 * 10, by_fifths), course[8] - course[0], fall


@pytest.mark.parametrize("steps", [50, 57, 90, 120, 431])
def test_windows_agree_with_a_slow_reading(steps):
    levels = 100 + np.random.default_rng(steps).normal(0, 5, steps).cumsum().clip(-50, 50)
    for windows in read_windows(levels, Chunked(steps, np.array([BLIND]))):
        for i, start in enumerate(windows.start):
            window = levels[start : start + windows.steps].tolist()
            found = [figure[i] for figure in (windows.growth, windows.rise, windows.fall)]
            assert np.multiply(found, windows.base_mib[i]) == pytest.approx(slow_reading(window), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("stairs", "left"), [((25,), 0), ((15, 32), 0), ((23, 27), 0), ((12, 25, 38), 1 / 3), ((10, 20, 30, 40), 1 / 2)]
)
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_what_two_steps_leave_of_a_rise(stairs, left, noise):
    levels = np.full(500, 1000.0)
    for stair in stairs:
        levels[stair * 10 :] += 300 / len(stairs)
    levels += noise * np.random.default_rng(2).standard_normal(500)
    *_, windows = read_windows(levels, Chunked(500, np.array([noise])))
    assert windows.steps == 500
    assert windows.sure_rest[-1] == pytest.approx(0.3 * left, abs=0.002 + 0.005 * noise)


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [(50, [50]), (59, [50]), (90, [50, 90]), (100, [50, 100]), (990, [50, 100, 200, 400, 800, 990])],
)
def test_windows_double_up_to_the_whole_run_and_reach_its_end(steps, lengths):
    read = list(read_windows(np.full(steps, 100.0), Chunked(steps, np.array([BLIND]))))
    assert [windows.steps for windows in read] == lengths
    for windows in read:
        assert windows.start[-1] + windows.steps == steps
        assert np.all(np.diff(windows.start) <= windows.steps / 50)
        assert windows.start[0] < max(2, windows.steps / 5)


@pytest.mark.parametrize("change", ["flat", "leak", "teeth", "steps"])
def test_the_noise_is_found_under_any_course(change):
    step = np.arange(3000)
    course = {
        "flat": 0 * step,
        "leak": step / 10,
        "teeth": 50 * (step / 7 % 1),
        "steps": 40.0 * (step // 500),
    }[change]
    found = noise_of(1000 + course + np.random.default_rng(1).normal(0, 10, 3000)).mib
    assert np.median(found) == pytest.approx(10, rel=0.2)


def test_teeth_and_spikes_without_noise_are_no_noise():
    step = np.arange(1000)
    for period in range(2, 11):
        assert noise_of(1000.0 + 300 * (step % period)).mib.max() == pytest.approx(0, abs=1e-9)
    assert noise_of(1000.0 + 300 * (step % 40 == 0)).mib.max() == 0


def test_noise_that_begins_late_is_that_of_the_late_windows_alone():
    levels = 1000 + np.random.default_rng(1).normal(0, 10, 1000) * (np.arange(1000) >= 500)
    windows = next(read_windows(levels, noise_of(levels)))
    assert windows.error[windows.start < 400].max() == 0
    assert windows.error[windows.start > 600].min() > 0.003


def test_the_stated_error_is_that_of_the_growth():
    rng = np.random.default_rng(3)
    first = [next(read_windows(levels, noise_of(levels))) for levels in rng.normal(1000, 10, (300, 100))]
    spread = np.std([windows.growth[0] for windows in first])
    assert spread == pytest.approx(np.mean([windows.error[0] for windows in first]), rel=0.15)
