"""What is predicted: every point of the sweep, each case once."""

import pytest

from nsa_lib.runs import environment
from nsa_lib.workbook.capacity.cases import sweep_points
from nsa_lib.workbook.questions import plan
from tests.runs.test_plan import CPU


@pytest.fixture
def planned(monkeypatch):
    monkeypatch.setattr(environment, "torch_facts", lambda: CPU)
    return lambda **given: plan("capacity", given)


def sizes(points, axis):
    return [point.case.model.layers if axis == "layers" else getattr(point.case, axis) for point in points]


@pytest.mark.parametrize(("layers", "depths"), [(1, [1, 2, 4]), (12, [6, 12, 24, 48]), (40, [20, 40]), (96, [48, 96])])
def test_depths_around_the_one_asked_for_are_predicted_unless_they_take_long(planned, layers, depths):
    points = [point for point in sweep_points(planned(layers=layers).values) if point.axis == "layers"]
    assert sizes([point for point in points if point.variant == "as asked"], "layers") == depths


def test_along_an_axis_the_other_sizes_are_as_asked(planned):
    points = sweep_points(planned(seq_len=1024, batch=2, layers=3).values)
    for axis, others in {"seq_len": (2, 3), "batch": (1024, 3), "layers": (1024, 2)}.items():
        along = [point for point in points if point.axis == axis]
        names = [name for name in ("seq_len", "batch", "layers") if name != axis]
        assert {tuple(sizes([point], name)[0] for name in names) for point in along} == {others}


@pytest.mark.parametrize(("asked", "other"), [(True, "checkpointing off"), (False, "checkpointing on")])
def test_a_variant_changes_one_thing(planned, asked, other):
    points = sweep_points(planned(grad_checkpointing=asked).values)
    assert {point.variant for point in points} == {"as asked", other, "loss in one piece"}
    for point in points:
        assert point.case.grad_checkpointing == (asked if point.variant != other else not asked)
        assert (point.case.loss_chunk == point.case.seq_len) == (point.variant == "loss in one piece")


def test_a_case_that_lies_on_several_curves_is_predicted_once(planned):
    found = planned(seq_len=512, seq_lens=[512, 1024])
    points = sweep_points(found.values)
    assert len(found.cases) == len({case.case_id for case in found.cases})
    assert {point.case for point in points} == set(found.cases)
    one_chunk = {point.variant: point.case for point in points if point.axis == "seq_len" and point.case.seq_len == 512}
    assert one_chunk["loss in one piece"] == one_chunk["as asked"], "512 tokens are one chunk anyway"


def test_what_is_predicted_is_told_in_the_first_sentence(planned, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Mine(torch.nn.Linear):\n    def __init__(self, dim):\n        super().__init__(dim, dim)\n"
    )
    sizes = "12 layers, S=2,048, batch 1, on a device of 80 GiB."
    assert planned().notices == [f"Predicted here: NSA, masked; {sizes}"]
    assert planned(attention="dense").notices == [f"Predicted here: dense attention; {sizes}"]
    assert planned(attention=f"{tmp_path}/mine.py:Mine").notices == [f"Predicted here: mine.py:Mine; {sizes}"]
