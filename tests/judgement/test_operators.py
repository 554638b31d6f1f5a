from collections import Counter

import pytest

from nsa_lib.judgement.operators import operator_growth

STEADY = Counter({"aten::add": 57, "aten::mm": 400, "aten::view": 1400})


def test_equal_counts_have_not_grown():
    growth = operator_growth(STEADY, STEADY)
    assert not growth.has_grown
    assert growth.total_growth == 0
    assert growth.grown == ()
    assert growth.worst is growth.worst_early is growth.worst_late is None


def test_an_operator_called_more_often_is_named_with_its_counts():
    growth = operator_growth(STEADY, STEADY + Counter({"aten::add": 120, "aten::mm": 21}))
    assert growth.grown == ("aten::add", "aten::mm")
    assert (growth.worst, growth.worst_early, growth.worst_late) == ("aten::add", 57, 177)
    assert growth.total_growth == pytest.approx(141 / 1857)


@pytest.mark.parametrize(
    ("early", "late", "grown"),
    [
        (40, 42, False),  # 5 %, 2 calls
        (40, 43, True),  # 7.5 %, 3 calls
        (60, 63, False),  # 5 %, not above it
        (100, 105, False),
        (100, 106, True),
        (10, 12, False),  # 20 %, but 2 calls
        (0, 2, False),
        (0, 3, True),
        (50, 0, False),
    ],
)
def test_an_operator_grows_by_more_than_5_percent_and_at_least_3_calls(early, late, grown):
    counts = {"aten::mm": 10_000}
    growth = operator_growth(counts | {"aten::add": early}, counts | {"aten::add": late})
    assert growth.has_grown == grown
    assert growth.grown == (("aten::add",) if grown else ())


def test_many_small_rises_grow_together():
    early = {f"aten::op{i}": 100 for i in range(50)}
    growth = operator_growth(early, dict.fromkeys(early, 102))
    assert growth.grown == ()
    assert growth.total_growth == pytest.approx(0.02)
    assert growth.has_grown


def test_counts_of_several_steps_are_judged_by_the_step():
    early, late = {"aten::add": 30, "aten::mm": 3000}, {"aten::add": 36, "aten::mm": 3000}
    assert operator_growth(early, late, steps=1).grown == ("aten::add",)
    assert operator_growth(early, late, steps=3).grown == ()
    growth = operator_growth(early, {"aten::add": 39, "aten::mm": 3000}, steps=3)
    assert (growth.worst_early, growth.worst_late) == (10, 13)


def test_nothing_counted_early_is_refused():
    with pytest.raises(ValueError, match="no operator calls"):
        operator_growth({}, STEADY)
