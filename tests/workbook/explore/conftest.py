"""A recorded smoke to explore."""

import pytest

from nsa_lib.workbook.run import open_run, record
from tests.made import save
from tests.workbook.explore.made import put_case, smoke


@pytest.fixture
def folder(tmp_path):
    """A recorded smoke whose training can be run again."""
    made = save(smoke(), tmp_path / "runs" / "smoke-1", run_id="smoke-1")
    record(made)
    put_case(made)
    return made


@pytest.fixture
def run(folder):
    return open_run(folder)
