"""A stand-in for the kernels of `fused` on a CPU: plain functions under their names.

What goes through a layer, a preflight or a contrast with `fused` can so be run, and spoilt, without a GPU.
"""

import pytest
from torch.profiler import record_function

from nsa_lib import config
from nsa_lib.attention import BACKENDS, fused, sliding_attention
from nsa_lib.attention.backends.masked import selection_bias
from nsa_lib.attention.fused import attention as fused_attention
from tests.bench_gpu.conftest import compressed, mix, select_blocks


def selected(q, k, v, block_indices, *, l_sel, scale):
    with record_function("nsa::selected::fused"):
        share = q.shape[1] // k.shape[1]
        bias, k, v = (
            x.repeat_interleave(share, dim=1) for x in (selection_bias(block_indices.long(), l_sel, q.dtype), k, v)
        )
        return (q @ k.mT * scale + bias).softmax(dim=-1) @ v


@pytest.fixture
def plain_kernels(monkeypatch):
    """Let cases on a CPU go through `fused`, which the plain functions compute."""
    functions = {
        "compressed_attention": compressed, "select_blocks": select_blocks, "selected_attention": selected,
        "sliding_attention": lambda q, k, v, *, w, scale: sliding_attention(q, k, v, w=w), "mix": mix,
    }  # fmt: skip
    for name, function in functions.items():
        monkeypatch.setattr(fused, name, function)
        monkeypatch.setattr(fused_attention, name, function)
    monkeypatch.setitem(BACKENDS, "fused", selected)
    monkeypatch.setattr(config, "fused_refusal", lambda *sizes: None)
