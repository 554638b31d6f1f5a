"""What the tests of runs and of what is made of them share."""

import pytest


@pytest.fixture
def put(templates, tmp_path):
    """Return what leaves a made-up run in the folder of the test."""
    return lambda notebook="smoke", name=None, **changes: templates.put(tmp_path, notebook, name, **changes)
