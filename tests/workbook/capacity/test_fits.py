"""What fits, against a search, and on planted sweeps that are chaotic, empty or zero."""

import pandas as pd
import pytest

from nsa_lib.workbook.capacity import figures
from nsa_lib.workbook.capacity.fits import ABOVE, changes_rows, fits_rows, largest
from tests.workbook.capacity.sweeps import ASKED, made_sweep

LIMIT_MIB = 1000.0


def test_the_largest_that_fits_is_between_the_points_and_never_too_large():
    sizes = [1, 4, 16, 64]
    points = made_sweep("batch", sizes, [100 + 30 * size + size**2 for size in sizes])
    certain, possible = largest(points, "batch", LIMIT_MIB)
    exact = next(b for b in range(64, 0, -1) if 100 + 30 * b + b**2 <= LIMIT_MIB)
    high = next(b for b in range(64, 0, -1) if (1 + ABOVE) * (100 + 30 * b + b**2) <= LIMIT_MIB)
    assert 0.8 * high <= certain <= high < exact
    assert exact <= possible < 1.1 * exact
    assert largest(points, "batch", 50.0) == (0, 0)


@pytest.mark.parametrize(
    "grows",
    [
        lambda size: 0.1 * size,
        lambda size: 1e-5 * size**2,  # as a mask does: a line through two points ends far beyond what fits
        lambda size: 100.0,
    ],
)
def test_beyond_the_last_prediction_no_figure_is_said(grows):
    sizes = {axis: [ASKED[axis], 2 * ASKED[axis], 4 * ASKED[axis]] for axis in ASKED}
    rows = pd.concat([made_sweep(axis, found, [grows(size) for size in found]) for axis, found in sizes.items()])
    fits = fits_rows(rows, LIMIT_MIB)["fits"].tolist()
    assert fits == [f"{n} or more, the largest predicted" for n in ("8,192", "4", "48")]
    (change,) = changes_rows(rows, ASKED, LIMIT_MIB).to_dict("records")
    assert (change["seq_len"], change["layers"]) == (fits[0], fits[2])


@pytest.mark.parametrize(
    ("reserved", "answer"),
    [
        ([110.0, 220.0, 30_000.0, 9000.0], (2, 8)),  # it falls again, still above the limit
        ([110.0, 220.0, 30_000.0, 900.0], (2, None)),  # it falls below the limit, and no more is known
        ([2000.0, 1500.0, 30_000.0, 9000.0], (0, 0)),
        ([0.0, 0.0, 30_000.0, 9000.0], (1, 8)),  # nothing to take a logarithm of
    ],
)
def test_a_chaotic_sweep_is_answered_by_points_of_it_and_never_by_an_error(reserved, answer):
    allocated = [min(mib, 100.0 * size) for mib, size in zip(reserved, (1, 2, 8, 16), strict=True)]
    assert largest(made_sweep("batch", [1, 2, 8, 16], reserved, allocated), "batch", LIMIT_MIB) == answer


def chaotic_rows(reserved=(246_928.0, 131_030.0, 900.0, 0.0), allocated=(400.0, 500.0, 900.0, 0.0)):
    curves = [
        made_sweep(axis, [ASKED[axis] // 2 or 1, ASKED[axis] * 2, ASKED[axis] * 4, ASKED[axis]], reserved, allocated)
        for axis in ("seq_len", "batch", "layers")
    ]
    return pd.concat(curves, ignore_index=True)


def test_tables_and_charts_of_a_chaotic_sweep_show_ranges_with_their_reasons():
    rows = chaotic_rows()
    fits = fits_rows(rows, LIMIT_MIB)
    assert fits["axis"].tolist() == ["S, tokens", "batch", "layers"]
    (change,) = changes_rows(rows, ASKED, LIMIT_MIB).to_dict("records")
    assert change["lowest_mib"] <= change["highest_mib"]
    assert all(row[-1].text.startswith("reserved falls from") for row in figures.ranges_table(rows).rows[:3])
    for axis in ("seq_len", "batch", "layers"):
        figure = figures.capacity_curves(rows, axis, LIMIT_MIB)
        curve = figure.data[0]
        assert min(*curve.error_y.array, *curve.error_y.arrayminus) >= 0
        assert any("MiB: " in text for text in curve.text)
        assert "ranges" in figure.layout.meta["description"]
        figures.terms_chart(rows, axis)


def test_a_curve_more_than_there_are_looks_is_drawn_all_the_same():
    names = [f"variant {number}" for number in range(6)]
    rows = pd.concat([made_sweep("seq_len", [1024, 2048], [10.0, 20.0], variant=name) for name in names])
    drawn = [trace.name for trace in figures.capacity_curves(rows, "seq_len", LIMIT_MIB).data]
    assert drawn == [*names, "limit"]
