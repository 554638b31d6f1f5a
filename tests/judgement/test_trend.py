import math
from statistics import median

import pytest

from nsa_lib.judgement.trend import judge_trend, steps_to_limit
from tests.traces import RISING, STABLE, STEPS, WARMUP, trace

BASES_MIB = (34.0, 1762.0, 20000.0)

SEEDS = range(60)

LONG_SEEDS = range(6)

at_every_base = pytest.mark.parametrize("base_mib", BASES_MIB)


def outcomes(kind: str, growth: float, base_mib: float) -> list[str]:
    seeds = LONG_SEEDS if kind == "long leak" else SEEDS
    return [judge_trend(*trace(kind, growth=growth, base_mib=base_mib, seed=seed)).outcome for seed in seeds]


def levels(change, base_mib=1762.0, steps=STEPS):
    """Return the trace `base * (1 + change(step))`, without noise."""
    numbers = list(range(1, steps + 1))
    return numbers, [base_mib * (1 + change(step)) for step in numbers]


def outcome(change, base_mib=1762.0, steps=STEPS, **limits) -> str:
    return judge_trend(*levels(change, base_mib, steps), **limits).outcome


@at_every_base
@pytest.mark.parametrize("kind", STABLE)
@pytest.mark.parametrize("size", [0.08, 0.3])
def test_what_is_no_trend_never_fails(kind, size, base_mib):
    assert "FAIL" not in outcomes(kind, size, base_mib)


@at_every_base
@pytest.mark.parametrize("kind", RISING)
def test_a_rise_of_8_percent_does_not_fail_and_is_named(kind, base_mib):
    assert set(outcomes(kind, 0.08, base_mib)) == {"WARN"}


@at_every_base
@pytest.mark.parametrize("kind", RISING)
def test_a_rise_of_12_percent_fails(kind, base_mib):
    found = outcomes(kind, 0.12, base_mib)
    assert found.count("FAIL") >= 0.95 * len(found)


@at_every_base
@pytest.mark.parametrize("kind", RISING)
def test_a_rise_of_15_percent_always_fails(kind, base_mib):
    assert set(outcomes(kind, 0.15, base_mib)) == {"FAIL"}


@at_every_base
@pytest.mark.parametrize("kind", ["flat", "noise", "warm-up ramp", "sawtooth"])
def test_what_does_not_rise_passes(kind, base_mib):
    assert set(outcomes(kind, 0.2, base_mib)) == {"PASS"}


@pytest.mark.parametrize("kind", sorted(set(RISING) - {"toothed leak"}))
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
    steps, values = trace("slow leak", growth=0.2, base_mib=1762.0, seed=1)
    trend = judge_trend(steps, values)
    first, last = trend.window
    judged = list(zip(steps, values))[first - 1 : last]
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
def test_missing_values_are_never_a_pass(missing):
    steps, values = levels(lambda step: 0.0)
    assert judge_trend(steps, [missing] * STEPS).outcome == "NOT_RUN"
    holed = [missing if 40 <= step < 52 else value for step, value in zip(steps, values)]
    assert judge_trend(steps, holed).outcome == "NOT_RUN"
    single = [missing if step % 7 == 0 else value for step, value in zip(steps, values)]
    assert judge_trend(steps, single).outcome == "PASS"


def test_a_leak_beside_a_gap_still_fails():
    steps, values = levels(lambda step: 0.2 * step / 50, steps=150)
    holed = [None if step > 130 else value for step, value in zip(steps, values)]
    assert judge_trend(steps, holed).outcome == "FAIL"


def test_a_value_every_five_steps_is_enough_and_every_twenty_is_not():
    for every, expected in ((5, "FAIL"), (20, "NOT_RUN")):
        steps, values = levels(lambda step: 0.15 * step / 50)
        assert judge_trend(steps[every - 1 :: every], values[every - 1 :: every]).outcome == expected


def test_steps_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="steps must ascend"):
        judge_trend([1, 2, 2], [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="one for each value"):
        judge_trend([1, 2], [1.0])


def test_steps_to_limit():
    assert steps_to_limit(70000, 25.0, 75000) == 200
    assert steps_to_limit(75000, -1.0, 75000) == 0
    assert steps_to_limit(70000, 0.0, 75000) is None
