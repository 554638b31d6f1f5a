import re

import pytest
import torch

from nsa_lib.runs.environment import PROJECT
from tests import gpu

NEEDS = re.compile(r'skipif\(not torch\.cuda\.is_available\(\)|"cuda" if torch\.cuda\.is_available\(\)')


def test_without_cuda_it_says_so_in_a_line_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(pytest, "main", lambda arguments: pytest.fail("nothing can run"))
    assert gpu.main() == 1
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert "no CUDA device" in said.err


@pytest.mark.parametrize("status", [0, 1])
def test_with_cuda_it_runs_them_and_says_what_pytest_says(monkeypatch, status):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pytest, "main", lambda arguments: asked.extend(arguments) or pytest.ExitCode(status))
    assert gpu.main() == status
    assert {str(PROJECT / file) for file in gpu.FILES} < set(asked)
    assert "-pno:benchmark" in asked


def test_the_list_holds_every_test_that_needs_a_gpu_and_no_other():
    tests = {file.relative_to(PROJECT).as_posix(): file for file in (PROJECT / "tests").rglob("test_*.py")}
    needing = {name for name, file in tests.items() if NEEDS.search(file.read_text())}
    assert needing == set(gpu.FILES)
