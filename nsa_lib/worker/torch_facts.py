"""What torch says of this machine, printed as one JSON line: `python -m nsa_lib.worker.torch_facts`.

A process of its own, so that the notebook never imports torch and never holds a CUDA context.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch


def versions() -> dict[str, str | None]:
    """Return the versions of torch, of the CUDA that it was built for, and of Triton."""
    return {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "triton": _triton_version()}


def torch_facts() -> dict[str, object]:
    """Return the versions of torch and Triton, threads, and the first CUDA device with its memory in MiB.

    `cuda_problem` says why there is none.
    """
    facts: dict[str, object] = {
        **versions(),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda_usable": torch.cuda.is_available(),
        "cuda_problem": None,
    }
    if not torch.cuda.is_available():
        return facts | {"cuda_problem": _why_no_cuda()}
    device = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    return facts | {
        "gpu": device.name,
        "gpu_uuid": str(device.uuid),
        "gpu_count": torch.cuda.device_count(),
        "compute_capability": f"{device.major}.{device.minor}",
        "gpu_memory_mib": round(total / 2**20),
        "gpu_memory_free_mib": round(free / 2**20),
        "cudnn": str(torch.backends.cudnn.version()) if torch.backends.cudnn.is_available() else None,
        "bf16_supported": torch.cuda.is_bf16_supported(),
    }


def _triton_version() -> str | None:
    """Return Triton's version, or None where it cannot be imported; it is not imported here."""
    if find_spec("triton") is None:
        return None
    try:
        return version("triton")
    except PackageNotFoundError:  # nightly builds are distributed under another name
        return "unknown"


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "torch finds no CUDA device"


if __name__ == "__main__":
    print(json.dumps(torch_facts() | {"python": platform.python_version()}))
