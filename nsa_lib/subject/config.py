"""The sizes of the attention and of the model, and the names that they accept.

Nothing here imports torch, so that a notebook and a worker can share it. Every refusal is one line. It names the value
and what is accepted instead.
"""

from __future__ import annotations

from dataclasses import dataclass

FUSED = "fused"
"""The backend of Triton kernels, for CUDA devices alone."""

PLAIN_BACKENDS = ("masked", "gather", "packed")
"""Backends that run wherever torch does."""

BACKEND_NAMES = (*PLAIN_BACKENDS, FUSED)

FUSED_WIDEST = 128

FUSED_BLOCKS = (16, 32, 64, 128)

FUSED_MOST_SELECTED = 32

FUSED_DTYPES = ("bfloat16", "float16", "float32")
"""What the fused kernels take: widest head, sizes of a selection block, blocks a query selects, dtypes."""

ATTENTION_NAMES = ("nsa", "dense")
"""`dense` is the yardstick: causal attention of the same width."""

BRANCHES = ("cmp", "slc", "win")

PHIS = ("mlp", "mean")

LOSS_CHUNK = 512
"""Tokens whose logits exist at a time: at vocab 50,257 about 100 MiB in float32."""


class ConfigError(ValueError):
    """A request that cannot be carried out, in one line that names the parameter and what it accepts."""

    def _render_traceback_(self) -> list[str]:
        """Show that line alone in a notebook. A traceback would point at code that did nothing wrong."""
        return [f"ConfigError: {self}"]


@dataclass(frozen=True, kw_only=True)
class NSAConfig:
    """Sizes of one Native Sparse Attention layer (arXiv 2502.11089), in tokens unless said otherwise.

    Raises ConfigError, naming the two values, for sizes that do not fit each other.
    """

    dim: int
    """Width of the model."""
    heads: int
    """Query heads."""
    groups: int
    """KV heads; each is shared by heads / groups query heads."""
    d_k: int
    """Width of a query or key head; even, because RoPE rotates halves."""
    d_v: int
    """Width of a value head."""
    l: int
    """Compression block."""
    d: int
    """Stride of the compression blocks."""
    l_sel: int
    """Selection block."""
    n_sel: int
    """Selection blocks that a query reads, the three fixed ones included."""
    w: int
    """Sliding window, own token included."""
    phi: str = "mlp"
    """How a block is compressed: `mlp` or `mean`."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies."""
    branches: tuple[str, ...] = BRANCHES
    """Branches that are computed."""

    def __post_init__(self):
        object.__setattr__(self, "branches", tuple(self.branches))
        for name in ("dim", "heads", "groups", "d_k", "d_v", "l", "d", "l_sel", "n_sel", "w", "rope_base"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: accepts a size above 0")
        self._require(self.heads % self.groups == 0, "heads", "groups", "heads must be a multiple of groups")
        self._require(self.l % self.d == 0, "l", "d", "l must be a multiple of d")
        self._require(self.l_sel % self.d == 0, "l_sel", "d", "l_sel must be a multiple of d")
        self._require(self.l <= self.l_sel, "l", "l_sel", "l must not exceed l_sel")
        if self.n_sel < 3:
            raise ConfigError(f"n_sel={self.n_sel}: accepts 3 or more (block 0, the query's own and the one before it)")
        if self.d_k % 2:
            raise ConfigError(f"d_k={self.d_k}: accepts an even number (RoPE rotates halves)")
        require_choice("phi", self.phi, PHIS)
        if not self.branches or len(set(self.branches)) < len(self.branches) or not set(self.branches) <= set(BRANCHES):
            raise ConfigError(f"branches={self.branches}: accepts one or more of {', '.join(BRANCHES)}")

    def _require(self, holds: bool, first: str, second: str, rule: str) -> None:
        if not holds:
            raise ConfigError(f"{first}={getattr(self, first)}, {second}={getattr(self, second)}: {rule}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A TinyLM: its attention layer, how many of them, and the vocabulary."""

    nsa: NSAConfig
    """Sizes of the attention. The dense yardstick takes its width and heads from here too."""
    layers: int
    """Blocks."""
    vocab: int
    """Tokens in the vocabulary."""
    attention: str = "nsa"
    """One of ATTENTION_NAMES."""
    backend: str = "masked"
    """Backend of the selected branch."""

    def __post_init__(self):
        for name in ("layers", "vocab"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: accepts a size above 0")
        require_choice("attention", self.attention, ATTENTION_NAMES)
        require_choice("backend", self.backend, BACKEND_NAMES)


def fused_refusal(nsa: NSAConfig, dtype: str, device: str) -> str | None:
    """Return why the fused backend cannot run with these, naming the parameter and what it accepts; None if it can."""
    if device != "cuda":
        return f"device={device}: accepts cuda"
    if dtype not in FUSED_DTYPES:
        return f"dtype={dtype}: accepts {', '.join(FUSED_DTYPES)}"
    for name in ("d_k", "d_v"):
        if getattr(nsa, name) > FUSED_WIDEST:
            return f"{name}={getattr(nsa, name)}: accepts up to {FUSED_WIDEST}"
    if nsa.l_sel not in FUSED_BLOCKS:
        return f"l_sel={nsa.l_sel}: accepts {', '.join(map(str, FUSED_BLOCKS))}"
    if nsa.n_sel > FUSED_MOST_SELECTED:
        return f"n_sel={nsa.n_sel}: accepts up to {FUSED_MOST_SELECTED}"
    return None


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigError, naming the parameter and what it accepts, unless the value is one of the choices."""
    if value not in choices:
        raise ConfigError(f"{name}={value!r}: accepts {', '.join(choices)}")
