"""Every mutant can be planted: its text stands once in the function that it names, and what comes out is Python."""

import pytest

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
