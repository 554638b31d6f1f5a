"""The parameter files: each key a parameter of its notebook, each value what the profile says."""

import pytest
from papermill.iorw import read_yaml_file

from nsa_lib.runs.environment import PROJECT
from nsa_lib.runs.parameters import read_value
from nsa_lib.workbook.questions import QUESTIONS

FILES = sorted((PROJECT / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_its_profile_says(path):
    notebook, profile = path.stem.rsplit("_", 1)
    assert notebook in QUESTIONS
    said = read_yaml_file(str(path))
    assert said.pop("profile") == profile
    assert set(said) <= set(QUESTIONS[notebook].request.parameters)
    assert {
        name: read_value(QUESTIONS[notebook].request.parameters, name, value) for name, value in said.items()
    } == QUESTIONS[notebook].request.profiles[profile]


def test_each_notebook_has_a_file_for_each_profile():
    assert {path.stem for path in FILES} == {f"{n}_{p}" for n in QUESTIONS for p in QUESTIONS[n].request.profiles}
