"""The parameter files: each key a parameter of its notebook, each value what the profile says."""

import pytest
from papermill.iorw import read_yaml_file

from nsa_lib.config import WORKBOOK
from nsa_lib.environment import PROJECT
from nsa_lib.parameters import PARAMETERS, read_value
from nsa_lib.profiles import PROFILES

FILES = sorted((PROJECT / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_its_profile_says(path):
    notebook, profile = path.stem.rsplit("_", 1)
    assert notebook in WORKBOOK
    said = read_yaml_file(str(path))
    assert said.pop("profile") == profile
    assert set(said) <= set(PARAMETERS[notebook])
    assert {name: read_value(PARAMETERS[notebook], name, value) for name, value in said.items()} == PROFILES[notebook][
        profile
    ]


def test_each_notebook_has_a_file_for_each_profile():
    assert {path.stem for path in FILES} == {f"{n}_{p}" for n in WORKBOOK for p in PROFILES.get(n, ())}
