"""The sweep against direct predictions, its charts and tables, and what stops it."""

from dataclasses import replace

import pandas as pd
import pytest

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.runs import environment
from nsa_lib.runs.parameters import Value
from nsa_lib.runs.training_case import training_case
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.capacity import figures, measures
from nsa_lib.workbook.capacity.cases import subject
from nsa_lib.workbook.capacity.fits import changes_rows, fits_rows
from nsa_lib.workbook.capacity.measures import SETTINGS, limit_mib, sweep
from nsa_lib.workbook.questions import plan
from nsa_lib.worker.prediction.predict import predict
from tests.runs.test_plan import CPU

SMALL = {
    "dim": 64, "layers": 3, "heads": 2, "groups": 2, "d_k": 32, "d_v": 32, "n_sel": 4, "w": 64, "vocab": 2048,
    "seq_len": 1024, "seq_lens": [1024, 2048], "batches": [1, 2],
}  # fmt: skip


@pytest.fixture(scope="module")
def asked():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "torch_facts", lambda: CPU)
        return plan("capacity", dict(SMALL))


@pytest.fixture(scope="module")
def rows(asked):
    return sweep(asked)


def direct(asked, layers=3, **changes):
    """Predict one case by itself."""
    unused = {"steps": 2, "lr": 3e-4, "seed": 0, "fault": "none", "device_budget_gib": None}
    case = training_case({**asked.values, **{name: Value(name, value, "", None) for name, value in unused.items()}})
    return predict(replace(case, model=replace(case.model, layers=layers), **changes))


@pytest.mark.parametrize(
    ("axis", "variant", "changes"),
    [
        ("seq_len", "as asked", {"seq_len": 2048}),
        ("seq_len", "checkpointing off", {"grad_checkpointing": False}),
        ("seq_len", "loss in one piece", {"loss_chunk": 1024}),
        ("batch", "as asked", {"batch": 2}),
        ("layers", "as asked", {"layers": 12}),
        ("layers", "checkpointing off", {"layers": 1, "grad_checkpointing": False}),
    ],
)
def test_every_row_is_the_prediction_of_its_own_sizes(asked, rows, axis, variant, changes):
    sizes = {name: changes.get(name, asked[name]) for name in ("seq_len", "batch", "layers")}
    curve = rows[(rows["axis"] == axis) & (rows["variant"] == variant)]
    (row,) = curve[(curve[list(sizes)] == pd.Series(sizes)).all(axis=1)].to_dict("records")
    found = direct(asked, **changes)
    assert row["peak_alloc_mib"] == found["peak_alloc_mib"]
    assert row["peak_reserved_mib"] == found["peak_reserved_mib"]
    assert row["terms"] == found["terms"][row["phase"]]
    assert sum(row["terms"].values()) == pytest.approx(row["peak_alloc_mib"])


def test_an_allocator_setting_is_a_variant_of_its_own(asked, rows):
    found = direct(asked, seq_len=2048)["settings"]
    at = rows[(rows["axis"] == "seq_len") & (rows["seq_len"] == 2048)].set_index("variant")
    assert {name: at.loc[variant, "peak_reserved_mib"] for variant, name in SETTINGS.items()} == {
        name: found[name]["peak_reserved_mib"] for name in ALLOCATOR_SETTINGS
    }


def test_every_axis_has_its_points_and_no_reserved_lies_below_allocated(rows):
    own = rows[rows["variant"] == "as asked"]
    assert own[own["axis"] == "seq_len"]["seq_len"].tolist() == [1024, 2048]
    assert own[own["axis"] == "batch"]["batch"].tolist() == [1, 2]
    assert own[own["axis"] == "layers"]["layers"].tolist() == [1, 3, 6, 12]
    assert set(rows["variant"]) == {"as asked", "checkpointing off", "loss in one piece", *SETTINGS}
    assert (rows["peak_alloc_mib"] <= rows["lowest_mib"]).all()
    assert (rows["lowest_mib"] <= rows["highest_mib"]).all()


def test_what_changes_and_what_fits_is_said_in_tables_and_charts(asked, rows):
    limit = limit_mib(asked)
    assert limit == 70_000
    changes = changes_rows(rows, asked, limit)
    assert len(changes) == 3 + len(SETTINGS)
    by_change = changes.set_index("change")["peak_alloc_mib"]
    assert by_change["as asked"] < by_change["loss in one piece"]
    fits = figures.fits_table(fits_rows(rows, limit), subject(asked.values))
    assert fits.caption.startswith("NSA, masked: predicted to fit")
    assert [row[1].text for row in fits.rows] == [f"{n} or more, the largest predicted" for n in ("2,048", "2", "12")]
    assert "loss in one piece" in figures.changes_table(changes)._repr_html_()
    for axis in ("seq_len", "batch", "layers"):
        figure = figures.capacity_curves(rows, axis, limit)
        assert figure.data[0].name == "as asked"
        assert (figure.data[-1].name, set(figure.data[-1].y)) == ("limit", {limit})
        assert sum(trace.y[0] for trace in figures.terms_chart(rows, axis).data) == pytest.approx(100, abs=1)
    names = [trace.name for trace in figures.setting_curves(rows, limit).data]
    assert names == [*(conf or "(none)" for conf in ALLOCATOR_SETTINGS.values()), "limit"]


def test_the_device_limits_where_it_is_smaller_than_the_checklist(asked):
    smaller = replace(asked, values={**asked.values, "device_gib": Value("device_gib", 24.0, "given", None)})
    assert limit_mib(smaller) == 24 * 1024


def test_a_case_without_a_prediction_stops_the_sweep_with_its_reason(asked, monkeypatch):
    monkeypatch.setattr(measures, "PATIENCE_S", 0.0)
    with pytest.raises(ConfigError, match="no prediction: it was not ready in time"):
        sweep(asked)


def test_a_setting_that_cannot_be_simulated_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(environment, "torch_facts", lambda: CPU)
    with pytest.raises(ConfigError, match="cannot be simulated"):
        plan("capacity", {**SMALL, "alloc_conf": "garbage_collection_threshold:0.8"})
