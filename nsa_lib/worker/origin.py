"""What a case was run from, as its own process finds it: the case that it read, source, data, machine and versions.

It stands in the first heartbeat. run.json and case.json can be edited afterwards; they are held against this.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.machine import cpu_name
from nsa_lib.contract.origin import case_sha256
from nsa_lib.contract.source import package_sha256
from nsa_lib.worker.data import data_sha256
from nsa_lib.worker.torch_facts import versions

DRIVER_FILE = Path("/proc/driver/nvidia/version")

DRIVER = re.compile(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s")


def origin(case: CaseConfig, text: str) -> dict[str, object]:
    """Return the origin of a case whose case.json holds `text`; a fact that cannot be found is None."""
    on_gpu = case.device == "cuda" and torch.cuda.is_available()
    device = torch.cuda.get_device_properties(torch.cuda.current_device()) if on_gpu else None
    return {
        "case_sha256": case_sha256(text),
        "package_sha256": package_sha256(),
        "data_sha256": data_sha256(case),
        "host": platform.node(),
        "processor": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        **versions(),
        "driver": _driver() if on_gpu else None,
        "gpu": device.name if device else None,
        "gpu_uuid": str(device.uuid) if device else None,
    }


def _driver() -> str | None:
    found = DRIVER.search(DRIVER_FILE.read_text()) if DRIVER_FILE.exists() else None
    return found.group(1) if found else None
