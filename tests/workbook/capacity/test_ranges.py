"""Chaotic reserved memory, planted: it is a range, with its reason, and nothing else is."""

import pytest

from tests.workbook.capacity.sweeps import made_sweep

SIZES = [2048, 4096, 8192, 16384]


def test_what_grows_with_the_size_is_no_range():
    rows = made_sweep("seq_len", SIZES, [110.0, 230.0, 560.0, 1800.0], [100.0, 200.0, 400.0, 1000.0])
    assert set(rows["reason"]) == {""}
    assert rows["lowest_mib"].tolist() == rows["highest_mib"].tolist() == rows["peak_reserved_mib"].tolist()


def test_reserved_far_above_allocated_is_a_range_of_its_neighbours_and_not_below_allocated():
    rows = made_sweep("seq_len", SIZES, [110.0, 210.0, 1500.0, 9000.0], [100.0, 200.0, 400.0, 5000.0])
    assert [bool(reason) for reason in rows["reason"]] == [False, False, True, False]
    jump = rows.iloc[2]
    assert (jump["lowest_mib"], jump["highest_mib"]) == (400.0, 9000.0)
    assert jump["reason"] == "predicted 1,500 MiB, 2 times allocated or more"


@pytest.mark.parametrize("axis", ["seq_len", "batch", "layers"])
def test_reserved_that_falls_as_a_size_grows_makes_both_a_range(axis):
    rows = made_sweep(axis, [2, 4, 8], [190.0, 150.0, 300.0], [100.0, 120.0, 240.0])
    assert rows["reason"].tolist() == [f"reserved falls from {axis} = 2 to 4"] * 2 + [""]
    assert rows["lowest_mib"].tolist() == [150.0, 150.0, 300.0]
    assert rows["highest_mib"].tolist() == [190.0, 300.0, 300.0]


def test_each_curve_has_its_own_neighbours_whatever_the_order_of_the_rows():
    rows = made_sweep("batch", [8, 2, 4], [300.0, 190.0, 150.0], [240.0, 100.0, 120.0])
    assert rows["batch"].tolist() == [8, 2, 4]
    assert [bool(reason) for reason in rows["reason"]] == [False, True, True]
