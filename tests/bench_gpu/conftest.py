"""What the benchmark's tests share."""

import sys

import pytest


@pytest.fixture
def no_triton(monkeypatch):
    """Make the import of Triton, which every kernel of `fused` begins with, fail."""
    monkeypatch.setitem(sys.modules, "triton", None)
