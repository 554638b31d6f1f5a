import math
import time
from statistics import median

import numpy as np
import pytest

from nsa_lib.judgement.trend import judge_trend, steps_to_limit
from tests.traces import HARD, NET, RISING, STABLE, STEPPED, STEPS, WARMUP, trace

BASES_MIB = (34.0, 1762.0, 20000.0)
SEEDS = range(40)

at_every_base = pytest.mark.parametrize("base_mib", BASES_MIB)


def outcomes(kind: str, growth: float, seeds=SEEDS, **given) -> list[str]:
    return [judge_trend(*trace(kind, growth=growth, seed=seed, **given)).outcome for seed in seeds]


def levels(change, base_mib=1762.0, steps=STEPS):
    """Return the trace `base * (1 + change(step))`, without noise."""
    numbers = list(range(1, steps + 1))
    return numbers, [base_mib * (1 + change(step)) for step in numbers]


def outcome(change, base_mib=1762.0, steps=STEPS, **limits) -> str:
    return judge_trend(*levels(change, base_mib, steps), **limits).outcome


@pytest.mark.parametrize("kind", STABLE)
@pytest.mark.parametrize("size", [0.08, 0.3])
@pytest.mark.parametrize("noise", [0.003, 0.01])
def test_what_does_not_rise_passes(kind, size, noise):
    assert set(outcomes(kind, size, noise=noise)) == {"PASS"}
    assert set(outcomes(kind, size, range(4), noise=noise, steps=2000)) == {"PASS"}


@pytest.mark.parametrize("kind", STEPPED)
@pytest.mark.parametrize("size", [0.08, 0.3, 3.0])
def test_one_or_two_steps_up_never_fail(kind, size):
    assert "FAIL" not in outcomes(kind, size)
    assert "FAIL" not in outcomes(kind, size, noise=0.01)
    assert "FAIL" not in outcomes(kind, size, range(4), steps=2000)


def test_one_step_up_does_not_fail_under_noise_of_5_percent():
    assert "FAIL" not in outcomes("single step", 0.3, noise=0.05)
    assert "FAIL" not in outcomes("single step", 0.3, range(10), noise=0.05, steps=1000)


@pytest.mark.parametrize("kind", [*RISING, "leak of 25 steps", "saturating", "toothed leak"])
def test_a_rise_of_8_percent_does_not_fail_and_is_named(kind):
    assert set(outcomes(kind, 0.08)) == {"WARN"}


@pytest.mark.parametrize("kind", [*RISING, *HARD])
def test_a_rise_of_12_percent_fails(kind):
    assert set(outcomes(kind, 0.12)) == {"FAIL"}
    assert set(outcomes(kind, 0.12, range(4), steps=2000)) == {"FAIL"}


@pytest.mark.parametrize("kind", RISING)
def test_a_rise_of_12_percent_fails_under_noise_of_1_percent(kind):
    found = outcomes(kind, 0.12, noise=0.01)
    assert found.count("FAIL") >= 0.95 * len(found)
    assert set(outcomes(kind, 0.13, range(4), noise=0.01, steps=2000)) == {"FAIL"}


@pytest.mark.parametrize("kind", NET)
@pytest.mark.parametrize("growth", [0.2, 0.64])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_net_rise_never_passes_whatever_its_path(kind, growth, noise):
    assert "PASS" not in outcomes(kind, growth, noise=noise)


@pytest.mark.parametrize("fall", [0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("steps", [60, 70, 100])
def test_two_falls_do_not_acquit_a_rise_of_64_percent(fall, steps):
    def change(step):
        part = max(0, step - WARMUP) / (steps - WARMUP)
        return (0.64 + 2 * fall) * part - fall * (part > 0.3) - fall * (part > 0.7)

    assert outcome(change, steps=steps) in ("FAIL", "WARN")
    assert outcome(change, steps=steps) == "FAIL" or fall > 0.1


def test_a_rise_that_is_flushed_away_at_the_end_of_the_run_fails():
    assert outcome(lambda step: 0.3 * (step - 10) / 80 if step <= 90 else 0.0) == "FAIL"


@pytest.mark.parametrize("steps", [1000, 2000, 20_000, 200_000])
def test_a_leak_over_the_last_tenth_fails_at_any_length(steps):
    step = np.arange(1, steps + 1)
    leak = 1762 * (1 + 0.3 * np.clip(step / steps - 0.9, 0, 1) / 0.1)
    trend = judge_trend(step, leak)
    assert trend.outcome == "FAIL"
    assert trend.growth == pytest.approx(0.3, abs=0.03)
    assert trend.window[1] > 0.98 * steps


@pytest.mark.parametrize(("steps", "noise"), [(2000, 0.01), (20_000, 0.05)])
def test_a_long_flat_run_passes_under_noise(steps, noise):
    assert set(outcomes("noise", 0.0, range(8), noise=noise, steps=steps)) == {"PASS"}


@pytest.mark.parametrize(("rise_steps", "growth"), [(50, 0.4), (200, 0.22), (1500, 0.15)])
def test_the_limit_leaves_room_for_noise(rise_steps, growth):
    rng = np.random.default_rng(rise_steps)
    step = np.arange(1, 2001)
    rise = 1 + growth * np.clip((step - 300) / rise_steps, 0, 1)
    assert judge_trend(step, 1762 * (rise + 0.05 * rng.standard_normal(2000))).outcome == "FAIL"
    small = 1 + 0.08 * np.clip((step - 300) / rise_steps, 0, 1)
    assert judge_trend(step, 1762 * (small + 0.05 * rng.standard_normal(2000))).outcome != "FAIL"


@pytest.mark.parametrize(("start", "rise_steps"), [(0, 50), (333, 50), (500, 90), (777, 120), (100, 700), (940, 50)])
def test_a_leak_is_seen_wherever_it_begins_and_ends(start, rise_steps):
    def change(step):
        return 0.12 * min(max(0, step - WARMUP - start) / rise_steps, 1)

    assert outcome(change, steps=1000) == "FAIL"
    assert outcome(lambda step: 0.7 * change(step), steps=1000) == "WARN"


def test_the_verdict_knows_no_unit():
    for kind in [*STABLE, *RISING]:
        assert len({tuple(outcomes(kind, 0.1, range(3), base_mib=base)) for base in BASES_MIB}) == 1


@pytest.mark.parametrize("kind", ["slow leak", "leak", "early leak", "late leak", "staircase", "saturating"])
def test_the_stated_growth_of_a_trace_is_true(kind):
    _, values = trace(kind, growth=0.2, base_mib=1.0, seed=5, noise=0.0)
    assert max(values[WARMUP:]) / values[WARMUP] - 1 == pytest.approx(0.2, abs=0.01)


@at_every_base
def test_growth_and_slope_of_a_leak_are_its_own(base_mib):
    trend = judge_trend(*levels(lambda step: 0.15 * (step - 1) / 50, base_mib, steps=60))
    assert trend.growth == pytest.approx(0.15 / 1.03, rel=0.03)
    assert trend.slope_mib_per_step == pytest.approx(0.15 / 50 * base_mib, rel=1e-6)
    assert trend.window == (11, 60)
    assert "over steps 11-60" in trend.detail


def test_growth_agrees_with_the_median_slope_of_all_pairs():
    steps, values = trace("slow leak", growth=0.2, seed=1)
    trend = judge_trend(steps, values)
    first, last = trend.window
    judged = list(zip(steps, values, strict=True))[first - 1 : last]
    slope = median((b - a) / (t - s) for i, (s, a) in enumerate(judged) for t, b in judged[i + 1 :])
    assert trend.slope_mib_per_step == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("falls", lambda s: -0.002 * s, "PASS"),
        ("one spike", lambda s: 0.5 * (s == 70), "PASS"),
        ("two spikes on a leak of 8 %", lambda s: 0.08 * s / 100 + 0.5 * (s in (60, 90)), "WARN"),
        ("spike on a leak of 15 %", lambda s: 0.15 * s / 50 + 0.5 * (s == 70), "FAIL"),
        ("step of 5 % long ago", lambda s: 0.05 * (s >= 30), "PASS"),
        ("step of 5 % in the last 50 steps", lambda s: 0.05 * (s >= 70), "WARN"),
        ("step of 15 %", lambda s: 0.15 * (s >= 30), "WARN"),
        ("two steps of 8 %", lambda s: 0.08 * (s >= 25) + 0.08 * (s >= 60), "WARN"),
        ("three steps of 5 %", lambda s: 0.05 * ((s >= 25) + (s >= 40) + (s >= 55)), "FAIL"),
        ("step that goes back", lambda s: 0.15 * (30 <= s < 50), "PASS"),
        ("leak of 5 % from step 85", lambda s: 0.05 * max(0, s - 85) / 15, "WARN"),
        ("leak of 25 steps in the middle", lambda s: 0.13 * min(max(0, s - 40), 25) / 25, "FAIL"),
        ("36 MiB that grow by 275 %", lambda s: 2.75 * s / 100, "FAIL"),
        ("doubling every ten steps", lambda s: 2 ** (s / 10), "FAIL"),
    ],
)
@at_every_base
def test_shapes(name, change, expected, base_mib):
    assert outcome(change, base_mib) == expected, name


@at_every_base
def test_growth_too_slow_for_any_window_fails_over_the_whole_run(base_mib):
    assert outcome(lambda step: 0.68 * step / 1000, base_mib, steps=1000) == "FAIL"
    assert outcome(lambda step: 0.09 * step / 1000, base_mib, steps=1000) == "WARN"
    assert outcome(lambda step: 0.01 * step / 1000, base_mib, steps=1000) == "PASS"


def test_segments_of_20_mib_are_no_growth_up_to_the_floor_and_growth_above_it():
    def reserved(mib_per_step, steps=STEPS):
        numbers = range(1, steps + 1)
        return numbers, [34.0 + 20 * (mib_per_step * step // 20) for step in numbers]

    assert judge_trend(*reserved(0.25, steps=90), floor_mib=20).outcome == "PASS"
    assert judge_trend(*reserved(0.25, steps=90)).outcome == "WARN"
    assert judge_trend(*reserved(2.0), floor_mib=20).outcome == "FAIL"
    assert outcome(lambda step: 0.15 * step / 50, base_mib=1762.0, floor_mib=20) == "FAIL"


@pytest.mark.parametrize("steps", [0, 10, 40, 59])
def test_a_run_too_short_to_judge_is_not_run(steps):
    trend = judge_trend(*levels(lambda step: 0.02 * step, steps=steps))
    assert trend.outcome == "NOT_RUN"
    assert trend.growth is trend.window is trend.slope_mib_per_step is None
    assert f"{max(0, steps - 10)} steps after the warm-up, needs 50" in trend.detail


def test_sixty_steps_are_enough():
    assert outcome(lambda step: 0.0, steps=60) == "PASS"


@pytest.mark.parametrize("missing", [None, math.nan, math.inf, 0.0])
@pytest.mark.parametrize("gone", [range(40, 52), range(70, 71), range(11, 101), range(11, 12)], ids=str)
def test_missing_values_are_never_a_pass(missing, gone):
    steps, values = levels(lambda step: 0.0)
    trend = judge_trend(steps, [missing if step in gone else value for step, value in zip(steps, values, strict=True)])
    assert trend.outcome == "NOT_RUN"
    assert "missing" in trend.detail


def test_missing_values_of_the_warmup_do_not_matter():
    steps, values = levels(lambda step: 0.0)
    assert judge_trend(steps, [None] * WARMUP + values[WARMUP:]).outcome == "PASS"


def test_steps_that_were_not_recorded_are_missing():
    steps, values = levels(lambda step: 0.0)
    assert judge_trend(steps[4::5], values[4::5]).outcome == "NOT_RUN"
    assert judge_trend(steps[:40] + steps[41:], values[:40] + values[41:]).outcome == "NOT_RUN"


def test_a_leak_beside_a_gap_still_fails_and_one_across_it_does_not():
    steps, values = levels(lambda step: 0.2 * step / 50, steps=150)
    holed = [None if step > 130 else value for step, value in zip(steps, values, strict=True)]
    assert judge_trend(steps, holed).outcome == "FAIL"
    jump = [
        value if step < 40 else None if step < 52 else 2 * value
        for step, value in zip(*levels(lambda step: 0.0), strict=True)
    ]
    assert judge_trend(list(range(1, STEPS + 1)), jump).outcome == "NOT_RUN"


def test_twice_the_steps_take_about_twice_the_time():
    def seconds(steps):
        given = trace("noise", growth=0.0, seed=1, steps=steps)
        begin = time.process_time()
        judge_trend(*given)
        return time.process_time() - begin

    once, twice = (min(seconds(steps) for _ in range(3)) for steps in (20_000, 40_000))
    assert twice < 3.5 * once


def test_steps_that_do_not_ascend_are_not_judged():
    steps = list(range(1, 101))
    for wrong in ([*steps[:-1], 99], steps[::-1], [step for step in steps for _ in range(2)]):
        trend = judge_trend(wrong, [100.0] * len(wrong))
        assert (trend.outcome, trend.detail.split(":")[0]) == ("NOT_RUN", "the steps do not ascend")


def test_a_value_is_needed_for_each_step():
    with pytest.raises(ValueError, match="1 values for 2 steps"):
        judge_trend([1, 2], [1.0])


def test_steps_to_limit():
    assert steps_to_limit(70000, 25.0, 75000) == 200
    assert steps_to_limit(75000, -1.0, 75000) == 0
    assert steps_to_limit(70000, 0.0, 75000) is None
