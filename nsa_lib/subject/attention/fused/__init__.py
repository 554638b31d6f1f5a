"""Native Sparse Attention by Triton kernels: all branches, forward and backward, and the choice of blocks.

For CUDA devices of compute capability 8.0 and later; bfloat16, float16, and float32 without hurry. Gradients are the
same bits in two runs. There is no buffer of queries times keys or blocks. Files here allocate and launch and need no
Triton to be imported; `kernels/` is Triton.
"""

from nsa_lib.subject.attention.fused.attention import chosen_blocks, nsa
from nsa_lib.subject.attention.fused.rope import apply_rope
from nsa_lib.subject.attention.fused.selected import selected_attention

__all__ = ["apply_rope", "chosen_blocks", "nsa", "selected_attention"]
