"""What charts share."""

from nsa_lib.report.charts.chart import looks


def test_every_name_has_a_look_of_its_own_and_none_runs_out():
    names = [f"name {number}" for number in range(30)]
    found = looks(names)
    assert list(found) == names
    assert len(set(found.values())) == 30
    assert len(looks(range(1000))) == 1000


def test_a_name_keeps_its_look_when_others_are_added():
    assert looks(["masked", "gather", "masked", "new"]) == {**looks(["masked", "gather"]), "new": looks("abc")["c"]}
