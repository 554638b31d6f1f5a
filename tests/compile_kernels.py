"""Compile every fused kernel for the GPUs that it must run on, without one: `python -m tests.compile_kernels`.

For compute capability 8.0 (A100, the checklist's machine) and 9.0 (H100, H200), in bfloat16, both classes of head width
and every way of the selected branch; each kernel must fit the shared memory that a block may have there. Nothing runs.
"""

from __future__ import annotations

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from nsa_lib.attention import fused
from nsa_lib.attention.fused import op
from nsa_lib.config import NSAConfig

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Most shared memory of a block, by compute capability (CUDA C++ Programming Guide)."""

LAYOUTS = (
    (2, 2, 64, 16, 300),
    (2, 2, 64, 16, 5000),
    (16, 1, 128, 32, 5000),
    (2, 2, 128, 32, 5000),
    (2, 2, 128, 32, 300),
)
"""Heads, groups, head width, l, length: short and listed, narrow; grouped, listed and short, wide."""


class Device:
    """What Triton asks of a device to compile for it."""

    def __init__(self, capability: int):
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        """Return the architecture."""
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        """Return a number, under which what was compiled is kept."""
        return self._capability

    def get_current_stream(self, device: int) -> int:
        """Return the stream that nothing is launched on."""
        return 0


def compile_all(capability: int) -> dict[str, int]:
    """Compile what one forward and backward of each layout launches; return each kernel's most shared bytes."""
    shared: dict[str, int] = {}
    launch = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **constants):
        compiled = launch(self, *arguments, grid=grid, warmup=True, **constants)
        name = self.fn.__name__
        shared[name] = max(shared.get(name, 0), compiled.metadata.shared)

    driver.set_active(Device(capability))
    JITFunction.run, op._require_interpreter = compile_only, lambda x: None
    try:
        for layout in LAYOUTS:
            forward_and_backward(*layout)
    finally:
        JITFunction.run = launch
    return shared


def forward_and_backward(heads: int, groups: int, width: int, l: int, length: int) -> None:
    """Go through the whole attention once on tensors of one layout, in bfloat16."""
    config = NSAConfig(
        dim=1, heads=heads, groups=groups, d_k=width, d_v=width, l=l, d=16, l_sel=64, n_sel=16, w=512
    )  # fmt: skip
    keys = (length - l) // 16 + 1
    shapes = ((heads, length), (groups, keys), (groups, keys), *[(groups, length)] * 4)
    tensors = [torch.zeros(1, t, h, width, dtype=torch.bfloat16).transpose(1, 2) for h, t in shapes]
    gates = torch.zeros(1, length, heads, 3, dtype=torch.bfloat16).transpose(1, 2)
    leaves = [x.requires_grad_() for x in (*tensors, gates)]
    fused.nsa(*leaves, config=config).sum().backward()


def main() -> int:
    """Compile for each capability, print each kernel's shared memory, and return how many do not fit."""
    too_large = 0
    for capability, most in SHARED_BYTES.items():
        for name, size in sorted(compile_all(capability).items()):
            fits = size <= most
            too_large += not fits
            print(f"sm_{capability}  {name:<24} {size:>7,} of {most:,} B{'' if fits else '  TOO LARGE'}", flush=True)
    return too_large


if __name__ == "__main__":
    sys.exit(main())
