"""Compile every fused kernel for the GPUs that it must run on, without one: `python -m tests.compile_kernels`.

For compute capability 8.0 (A100, the checklist's machine) and 9.0 (H100, H200), in bfloat16, both classes of head width
and every way of the selected branch; each kernel must fit the shared memory that a block may have there, and none that
is launched anywhere may be left out. Nothing runs.
"""

from __future__ import annotations

import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from nsa_lib.subject.attention import fused
from nsa_lib.subject.attention.fused import op, tma
from nsa_lib.subject.config import BRANCHES, NSAConfig

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Most shared memory of a block, by compute capability (CUDA C++ Programming Guide)."""

LAYOUTS = (
    (2, 2, 64, 16, 300, BRANCHES),
    (2, 2, 64, 16, 5000, BRANCHES),
    (16, 1, 128, 32, 5000, BRANCHES),
    (2, 2, 128, 32, 5000, BRANCHES),
    (2, 2, 128, 32, 300, BRANCHES),
    (2, 2, 64, 16, 300, ("cmp", "slc")),
)
"""Heads, groups, width, l, length, branches: short and listed, narrow; grouped, listed and short, wide; and without
the sliding branch, whose kernel also mixes all outputs."""

LAUNCH = re.compile(r"^ +(?:kernels\.)?(\w+)\[.*\]\(", re.MULTILINE)


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
    """Compile what each layout launches; return each kernel's most shared bytes."""
    shared: dict[str, int] = {}
    launch, has_engine = JITFunction.run, tma.has_engine

    def compile_only(self, *arguments, grid, warmup, **constants):
        compiled = launch(self, *arguments, grid=grid, warmup=True, **constants)
        name = self.fn.__name__
        shared[name] = max(shared.get(name, 0), compiled.metadata.shared)

    driver.set_active(Device(capability))
    JITFunction.run, op._require_interpreter = compile_only, lambda x: None
    tma.has_engine = lambda x: capability == 90
    try:
        for layout in LAYOUTS:
            go_through(*layout)
    finally:
        JITFunction.run, tma.has_engine = launch, has_engine
    return shared


def go_through(heads: int, groups: int, width: int, l: int, length: int, branches: tuple[str, ...]) -> None:
    """Go through the whole and the selected attention, forward and backward, on bfloat16 tensors of one layout."""
    config = NSAConfig(
        dim=1, heads=heads, groups=groups, d_k=width, d_v=width, l=l, d=16, l_sel=64, n_sel=16, w=512, branches=branches
    )  # fmt: skip
    keys = (length - l) // 16 + 1
    shapes = ((heads, length), (groups, keys), (groups, keys), *[(groups, length)] * 4)
    tensors = [torch.zeros(1, t, h, width, dtype=torch.bfloat16).transpose(1, 2) for h, t in shapes]
    gates = torch.zeros(1, length, heads, len(branches), dtype=torch.bfloat16).transpose(1, 2)
    leaves = [x.requires_grad_() for x in (*tensors, gates)]
    q, k_cmp, _, k_slc, v_slc, *_ = leaves
    fused.nsa(fused.apply_rope(q), *leaves[1:], config=config).sum().backward()
    blocks = fused.chosen_blocks(q, k_cmp, config=config)
    fused.selected_attention(q, k_slc, v_slc, blocks, l_sel=64, scale=1.0).sum().backward()


def launched() -> set[str]:
    """Return the names of the kernels that the sources launch, `kernel[grid](...)`."""
    sources = Path(fused.__file__).parent.glob("*.py")
    return {name for source in sources for name in LAUNCH.findall(source.read_text())}


def main() -> int:
    """Compile for each capability, print each kernel's shared memory, return how many do not fit or are left out."""
    too_large = 0
    with ProcessPoolExecutor() as processes:
        compiled = dict(zip(SHARED_BYTES, processes.map(compile_all, SHARED_BYTES), strict=True))
    for capability, shared in compiled.items():
        most = SHARED_BYTES[capability]
        for name, size in sorted(shared.items()):
            fits = size <= most
            too_large += not fits
            print(f"sm_{capability}  {name:<24} {size:>7,} of {most:,} B{'' if fits else '  TOO LARGE'}", flush=True)
    left_out = launched() ^ set.intersection(*map(set, compiled.values()))
    print(f"launched in the sources or compiled here, but not both: {', '.join(sorted(left_out)) or 'none'}")
    return too_large + len(left_out)


if __name__ == "__main__":
    sys.exit(main())
