"""What fits: the sweep against direct predictions, the largest within a limit against a search, and the charts."""

from dataclasses import replace

import pandas as pd
import pytest

from nsa_lib.runs import environment
from nsa_lib.runs.parameters import Value
from nsa_lib.runs.training_case import training_case
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.capacity import measures
from nsa_lib.workbook.capacity.figures import capacity_curves, changes_table, fits_table, setting_curves, terms_chart
from nsa_lib.workbook.capacity.measures import RESERVED_BY_SETTING, changes_rows, fits_rows, largest, limit_mib, sweep
from nsa_lib.workbook.questions import plan
from nsa_lib.worker.prediction.predict import predict
from tests.runs.test_plan import CPU

SMALL = {
    "dim": 64, "layers": 6, "heads": 2, "groups": 2, "d_k": 32, "d_v": 32, "n_sel": 4, "w": 64, "vocab": 2048,
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


def direct(asked, **changes):
    """Predict a case with all its layers."""
    unused = {"steps": 2, "lr": 3e-4, "seed": 0, "fault": "none", "device_budget_gib": None}
    case = training_case({**asked.values, **{name: Value(name, value, "", None) for name, value in unused.items()}})
    return predict(replace(case, **changes))


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("as asked", {"seq_len": 2048}),
        ("checkpointing off", {"grad_checkpointing": False}),
        ("loss in one piece", {"loss_chunk": 1024}),
    ],
)
def test_a_few_layers_say_what_all_of_them_need(asked, rows, variant, changes):
    length = changes.get("seq_len", 1024)
    (row,) = rows[(rows["axis"] == "seq_len") & (rows["variant"] == variant) & (rows["seq_len"] == length)].to_dict(
        "records"
    )
    found = direct(asked, **changes)
    assert row["layers"] == 6
    assert row["peak_alloc_mib"] == pytest.approx(found["peak_alloc_mib"], rel=0.01)
    assert row["peak_reserved_mib"] == pytest.approx(found["peak_reserved_mib"], rel=0.08)
    assert sum(row["terms"].values()) == pytest.approx(row["peak_alloc_mib"])


def test_every_axis_has_its_points(asked, rows):
    own = rows[rows["variant"] == "as asked"]
    assert own[own["axis"] == "seq_len"]["seq_len"].tolist() == [1024, 2048]
    assert sorted(own[own["axis"] == "batch"]["batch"]) == [1, 2]
    assert 6 in own[own["axis"] == "layers"]["layers"].tolist()
    assert set(rows["variant"]) == {"as asked", "checkpointing off", "loss in one piece"}


def test_the_largest_that_fits_is_between_the_points_and_never_too_large():
    sizes = [1, 4, 16, 64]
    points = pd.DataFrame({"batch": sizes, "peak_reserved_mib": [100 + 30 * size + size**2 for size in sizes]})
    size, open_ended = largest(points, "batch", 1000.0)
    exact = next(b for b in range(64, 0, -1) if 100 + 30 * b + b**2 <= 1000)
    assert not open_ended
    assert 0.8 * exact <= size <= exact
    assert largest(points, "batch", 1e6) == (64, True)
    assert largest(points, "batch", 50.0) == (0, False)


def test_what_changes_and_what_fits_is_said_in_tables_and_charts(asked, rows):
    limit = limit_mib(asked)
    assert limit == 70_000
    changes = changes_rows(rows, asked, limit)
    assert len(changes) == 3 + len(RESERVED_BY_SETTING)
    by_change = changes.set_index("change")["peak_alloc_mib"]
    assert by_change["as asked"] < by_change["loss in one piece"]
    assert "at least 2,048" in fits_table(fits_rows(rows, limit))._repr_html_()
    assert "loss in one piece" in changes_table(changes)._repr_html_()
    for axis in ("seq_len", "batch", "layers"):
        figure = capacity_curves(rows, axis, limit)
        assert figure.data[0].name == "as asked"
        assert (figure.data[-1].name, set(figure.data[-1].y)) == ("limit", {limit})
        assert sum(trace.y[0] for trace in terms_chart(rows, axis).data) == pytest.approx(100, abs=1)
    assert len(setting_curves(rows, RESERVED_BY_SETTING, limit).data) == 5


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
