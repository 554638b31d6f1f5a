"""The tests that need a GPU, in one process: `make test-gpu`.

Everything else passes or fails on a GPU box as it does on a CPU. One process: many that compile and profile at once got
in each other's way.
"""

from __future__ import annotations

import sys

import pytest
import torch

from nsa_lib.runs.environment import PROJECT

FILES = (
    "tests/subject/attention/test_fused.py",
    "tests/subject/attention/test_sdpa.py",
    "tests/worker/test_accuracy.py",
    "tests/worker/test_graphed.py",
    "tests/worker/test_profiling.py",
)
"""Those with tests that run on a CUDA device where there is one."""

OPTIONS = ("--durations=10", "--no-header", *(f"-pno:{plugin}" for plugin in ("benchmark", "cacheprovider", "xdist")))
"""pytest-benchmark warns of whatever runs beside it, and a warning is an error here."""


def main() -> int:
    """Run the tests and return pytest's exit status; 1 on a machine without CUDA, where nothing runs."""
    if not torch.cuda.is_available():
        print(
            "test-gpu: torch finds no CUDA device; make test runs the kernels in Triton's interpreter", file=sys.stderr
        )
        return 1
    return int(pytest.main([*(str(PROJECT / file) for file in FILES), *OPTIONS]))


if __name__ == "__main__":
    sys.exit(main())
