"""Native Sparse Attention (arXiv 2502.11089): the module, its branches as functions, and the backends of selection.

The layout is [B, heads, T, D], as in scaled_dot_product_attention. `reference` judges all of it and is imported by
name.
"""

from collections.abc import Callable

from torch import nn

from nsa_lib.subject.attention.backends import BACKENDS
from nsa_lib.subject.attention.compression import compress, compressed_attention, compressed_probabilities
from nsa_lib.subject.attention.dense import DenseAttention
from nsa_lib.subject.attention.module import NSAttention
from nsa_lib.subject.attention.protocol import Attention
from nsa_lib.subject.attention.selection import block_scores, select_blocks, selected_attention
from nsa_lib.subject.attention.sliding import sliding_attention
from nsa_lib.subject.config import ModelConfig

ATTENTIONS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "nsa": lambda config: NSAttention(config.nsa, config.backend),
    "dense": lambda config: DenseAttention(config.nsa),
}
"""How the attention of a layer is made, by the names of `config.ATTENTION_NAMES`."""

__all__ = [
    "ATTENTIONS",
    "BACKENDS",
    "Attention",
    "DenseAttention",
    "NSAttention",
    "block_scores",
    "compress",
    "compressed_attention",
    "compressed_probabilities",
    "select_blocks",
    "selected_attention",
    "sliding_attention",
]
