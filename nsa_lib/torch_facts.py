"""What torch says of this machine, printed as one JSON line: `python -m nsa_lib.torch_facts`.

A process of its own, so that the notebook never imports torch and never holds a CUDA context.
"""

from __future__ import annotations

import json
import platform

import torch


def torch_facts() -> dict[str, object]:
    """Return torch's version and threads, and the first CUDA device with its memory in MiB, or why there is none."""
    facts: dict[str, object] = {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
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
