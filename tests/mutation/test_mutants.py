"""Every mutant can be planted: its text stands once in the function that it names, and what comes out is Python."""

from dataclasses import replace

import pytest

from tests.mutation import __main__ as command
from tests.mutation import trial
from tests.mutation.mutants import MUTANTS
from tests.mutation.trial import copy_project, plant


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("copy"))


def test_there_are_forty_at_least_and_each_has_a_name_of_its_own():
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_can_be_planted(project, mutant):
    path = project / mutant.file
    honest = path.read_text()
    plant(mutant, project)
    assert path.read_text() != honest
    path.write_text(honest)


OUTCOME = trial.Outcome("one", "NO-GO", True, "attention: rows | of layer 2", 20.0)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The table, in a folder of its own, as the outcomes beside it."""
    monkeypatch.setattr(command, "TABLE", tmp_path / "mutants.md")
    monkeypatch.setattr(command, "KEPT", tmp_path / "mutants.jsonl")
    monkeypatch.setattr(command, "torch_facts", lambda: {"torch": "2.13.0"})
    return tmp_path / "mutants.md"


def test_what_was_not_run_is_said_and_what_is_kept_is_not_run_again(table, monkeypatch, capsys):
    name = MUTANTS[0].name
    monkeypatch.setattr(command, "_attempt", lambda mutant: OUTCOME)
    assert command.main([name, "--limit-s", "0"]) == 1
    assert f"not run: {name}, honest" in capsys.readouterr().out
    assert command.main([name]) == 0
    monkeypatch.setattr(command, "_attempt", pytest.fail)
    assert command.main([name]) == 0
    assert "attention: rows \\| of layer 2" in table.read_text()
    monkeypatch.setattr(command, "_source", lambda: "another")
    assert command.main([name, "--lines", str(command.KEPT)]) == 0


def test_each_nth_is_run_alone(table, monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(command, "_attempt", lambda mutant: tried.append(mutant) or OUTCOME)
    assert command.main(["--every", "50"]) == 0
    assert [mutant for mutant in tried if mutant] == list(MUTANTS[::50])


def test_one_that_lives_is_a_failure(table, monkeypatch, capsys):
    monkeypatch.setattr(command, "_attempt", lambda mutant: replace(OUTCOME, caught=mutant is None))
    assert command.main([MUTANTS[0].name]) == 1
    assert "1 of 2 as expected" in capsys.readouterr().out
    assert "| NO |" in table.read_text()


def test_an_honest_run_stands_at_both_ends_and_every_so_many():
    chosen = list(command.in_turn(MUTANTS))
    assert set(chosen) > {mutant.name for mutant in MUTANTS}
    honest = [place for place, name in enumerate(chosen) if name.startswith("honest")]
    assert honest[-1] == len(chosen) - 1
    assert honest[0] <= command.HONEST_EVERY
    assert max(b - a for a, b in zip(honest, honest[1:], strict=False)) == command.HONEST_EVERY + 1


def test_a_mutant_that_never_ends_is_not_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "LIMIT_S", 0.1)
    outcome = trial.run(None, tmp_path)
    assert (outcome.verdict, outcome.caught) == ("nothing", False)
