"""Native Sparse Attention (arXiv 2502.11089): the module, its branches as functions, and the backends of selection.

Layout [B, heads, T, D], as in scaled_dot_product_attention. `reference` judges all of it and is imported by name.
"""

from nsa_lib.subject.attention.backends import BACKENDS
from nsa_lib.subject.attention.compression import compress, compressed_attention, compressed_probabilities
from nsa_lib.subject.attention.module import NSAttention
from nsa_lib.subject.attention.selection import block_scores, select_blocks, selected_attention
from nsa_lib.subject.attention.sliding import sliding_attention

__all__ = [
    "BACKENDS",
    "NSAttention",
    "block_scores",
    "compress",
    "compressed_attention",
    "compressed_probabilities",
    "select_blocks",
    "selected_attention",
    "sliding_attention",
]
