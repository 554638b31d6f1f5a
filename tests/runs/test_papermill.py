"""papermill as a child of ours: what it says when a notebook does not come to its end."""

import sys

import papermill.cli
import pytest
from papermill.exceptions import PapermillExecutionError

from nsa_lib.report import VerdictError
from nsa_lib.runs import papermill as module


@pytest.mark.parametrize(
    ("name", "said"),
    [(VerdictError.__name__, 1), ("ValueError", 'Exception encountered at "In [3]":\nthe cell\'s own stack')],
)
def test_the_stack_of_papermill_itself_is_not_shown_and_a_verdict_is_told_by_others(monkeypatch, name, said):
    def papermill_command(arguments, prog_name):
        assert arguments == ["in.ipynb", "out.ipynb"]
        raise PapermillExecutionError(2, 3, "run()", name, "NO-GO", ["the cell's own stack"])

    monkeypatch.setattr(papermill.cli, "papermill", papermill_command)
    monkeypatch.setattr(module, "die_with_parent", lambda pid: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        module.main(1, ["in.ipynb", "out.ipynb"])
    assert (ended.value.code if said == 1 else str(ended.value.code).partition("\n")[2]) == said
