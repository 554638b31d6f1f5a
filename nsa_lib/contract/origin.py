"""What a case was run from: written by its worker into its first heartbeat, read when its run is judged."""

from __future__ import annotations

import hashlib

ORIGIN = "origin"
"""Name under which the first heartbeat of a case holds it."""

MACHINE = ("host", "torch", "torch_cuda", "triton", "driver", "gpu", "gpu_uuid", "package_sha256")
"""What it tells of machine, versions and code: the same as run.json does."""


def case_sha256(text: str) -> str:
    """Return the sha256 of the text of a case.json."""
    return hashlib.sha256(text.encode()).hexdigest()
