import pytest

from nsa_lib.judgement.gate import PASS
from nsa_lib.judgement.selection import selection_advice, selection_rows
from tests.made import with_case
from tests.workbook.explore.made import MAP
from tests.workbook.smoke.made import healthy


def found(**changes):
    """What a worker finds of a healthy layer."""
    return {
        "choosing": 0.5, "overlap": 0.8, "forced": 0.75, "in_window": 0.1, "never_picked": 0.0, "near_ties": 0.02,
        "gates": {"cmp": 0.4, "slc": 0.5, "win": 0.6}, "shut": {"cmp": 0, "slc": 0, "win": 0},
        "wide_open": {"cmp": 0, "slc": 0, "win": 0}, "heads": 4, **changes,
    }  # fmt: skip


def run(first, last, **more):
    """A smoke whose recorded steps found these of their layers."""
    evidence = healthy("laptop")
    steps = evidence.fact("training", "attestation")
    for step, layers in ((steps[0], first), (steps[-1], last)):
        step["layers"] = [{"layer": layer, "health": health} for layer, health in enumerate(layers)]
    return with_case(evidence, "training", attestation=steps, **more)


SHUT = {"cmp": 0, "slc": 4, "win": 0}


def test_a_row_is_a_layer_of_a_recorded_step():
    rows = selection_rows(run([found(), found(overlap=0.3)], [found(), None]))
    assert rows[["step", "layer", "overlap"]].values.tolist() == [[1, 1, 0.8], [1, 2, 0.3], [100, 1, 0.8]]
    assert set(rows["gate"]) == {0.5}
    assert set(rows["adds_nothing"]) == {""}


def test_where_no_step_was_judged_the_end_of_the_case_is_shown():
    evidence = with_case(healthy("laptop"), "training", attention_map={**MAP, "health": [found(near_ties=None)]})
    rows = selection_rows(evidence)
    assert rows[["step", "layer"]].values.tolist() == [[100, 1]]
    assert rows["near_ties"].isna().all()


@pytest.mark.parametrize("kept", [None, MAP, {**MAP, "health": []}])
def test_where_nothing_was_found_there_is_no_row_and_no_advice(kept):
    evidence = with_case(healthy("laptop"), "training", attention_map=kept)
    assert selection_rows(evidence).empty
    assert selection_advice(evidence) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"in_window": 1}, "all blocks picked lie in the window"),
        ({"shut": SHUT}, "its gate is shut in every head"),
        ({"choosing": 0, "in_window": None}, "every query reads all blocks that there are"),
        ({"in_window": None}, "every block is forced"),
    ],
)
def test_a_layer_that_adds_nothing_is_named_and_the_verdict_stays(changes, why):
    evidence = run([found(**changes)] * 3, [found(), found(**changes), found(**changes)])
    assert selection_advice(evidence) == [f"Selection adds nothing to the sliding window in layers 2, 3: {why}."]
    assert evidence.summary["verdict"] == healthy("laptop").summary["verdict"]
    assert any(why in line for line in evidence.summary["advice"])
    assert {gate.outcome for gate in evidence.gates if gate.required} == {PASS}


def test_all_layers_are_not_counted_up():
    evidence = run([found()] * 3, [found(in_window=1)] * 3)
    assert "in all 3 layers that were looked at: all blocks" in selection_advice(evidence)[0]


@pytest.mark.parametrize("changes", [{"in_window": 0.999}, {"shut": {"cmp": 4, "slc": 3, "win": 4}}, {"heads": None}])
def test_a_layer_that_adds_a_little_is_not_named(changes):
    assert selection_advice(run([found()], [found(**changes)])) == []


def test_stuck_gates_of_every_branch_are_told():
    rows = selection_rows(
        run([], [found(shut={"cmp": 1, "slc": 2, "win": 0}, wide_open={"cmp": 0, "slc": 0, "win": 3})])
    )
    assert rows["stuck"].tolist() == [[("cmp", 1, 0), ("slc", 2, 0), ("win", 3, 1)]]
