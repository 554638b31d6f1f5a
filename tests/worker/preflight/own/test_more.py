"""Further kinds of mistakes and of what is right, each before the checks that are named for it or all that it owes."""

from dataclasses import replace

import pytest

from nsa_lib.contract.agenda import OWED
from nsa_lib.worker.own_trial import tried
from nsa_lib.worker.preflight.own import reach
from tests.worker.preflight.own import more_honest, more_mistakes
from tests.worker.preflight.own.test_blind import those_of
from tests.worker.preflight.own.test_own import case_of, look

KINDS = {
    (module.__name__.rpartition(".")[2], name): role
    for module in (more_honest, more_mistakes)
    for name, role, _ in those_of(module)
}


def case_like(file, name):
    """Return a case of the sizes that a kind asks for; short where it asks for none."""
    kind = getattr({"more_honest": more_honest, "more_mistakes": more_mistakes}[file], name)
    sizes = {"seq_len": getattr(kind, "seq_len", 150), "dtype": getattr(kind, "dtype", "float32")}
    case = case_of(file, name, role=KINDS[file, name], **sizes)
    model = replace(case.model, vocab=getattr(kind, "vocab", case.model.vocab))
    return replace(case, model=model, batch=getattr(kind, "batch", 1))


@pytest.mark.parametrize(("name", "_", "check"), list(those_of(more_mistakes)), ids=lambda value: value)
def test_a_mistake_is_found_by_the_check_that_is_named_for_it(name, _, check, monkeypatch):
    monkeypatch.setattr(reach, "EDIT_ALL", 64)
    monkeypatch.setattr(reach, "EDIT_S", 600)
    found = look(check, case_like("more_mistakes", name))
    assert found.holds is False, found
    assert found.required, found


@pytest.mark.parametrize("check", OWED)
@pytest.mark.parametrize(("name", "role", "_"), list(those_of(more_honest)), ids=lambda value: str(value)[:20])
def test_what_is_right_passes_every_check_that_is_required(name, role, _, check):
    found = look(check, case_like("more_honest", name))
    assert found.holds or not found.required, found


@pytest.mark.parametrize("name", ["Alibi", "Sinks", "BestBlocks", "PositionTable"])
def test_what_is_right_learns_to_copy(name):
    found = look("copy_near", case_like("more_honest", name))
    assert found.holds, found


@pytest.mark.parametrize(("name", "role", "_"), list(those_of(more_honest)), ids=lambda value: str(value)[:20])
def test_what_is_right_is_not_refused(name, role, _):
    assert tried(case_like("more_honest", name))["spec"].endswith(f":{name}")


def test_it_is_said_how_many_tokens_of_a_long_sequence_were_edited(monkeypatch):
    monkeypatch.setattr(reach, "EDIT_ALL", 64)
    monkeypatch.setattr(reach, "EDIT_S", 0)
    few = look("future", case_of("honest", "Softmax", seq_len=150)).detail
    monkeypatch.setattr(reach, "EDIT_S", 600)
    assert "edits at the full length" not in few
    assert look("future", case_of("honest", "Softmax", seq_len=150)).detail.endswith(
        "of 149 edits at the full length 149"
    )
