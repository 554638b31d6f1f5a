"""The sizes of the attention and of the model, and the names that they accept.

Nothing here imports torch, so that a notebook and a worker can share it. Every refusal is one line. It names the value
and what is accepted instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

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

OWN = "own"
"""What a user brings is called so wherever ours have names: a backend, an attention, a model."""

ATTENTION_NAMES = ("nsa", "dense")
"""`dense` is the yardstick: causal attention of the same width."""

MODEL_NAMES = ("tinylm",)

AUTO = "auto"
"""In place of a backend: `fused` where it can run, `masked` elsewhere; decided before a run."""

BUILT_IN = {"attention": ATTENTION_NAMES, "backend": (*BACKEND_NAMES, AUTO), "model": MODEL_NAMES}
"""The names that are ours, by parameter: what else it accepts is a user's."""

ENTRY_POINTS = {"attention": "nsa_lib.attentions", "backend": "nsa_lib.backends", "model": "nsa_lib.models"}
"""The group of entry points in which a package offers what it brings for each parameter."""

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
class Own:
    """What a user brings in place of ours, and what it is called with."""

    role: str
    """What it stands in for, the name of its parameter: `attention`, `backend` or `model`."""
    spec: str
    """`package.module:name`, `/absolute/file.py:name`, or the name of an entry point."""
    places: tuple[str, ...] = ()
    """Folders in which its packages are looked for after the installed ones."""
    arguments: Mapping[str, object] = field(default_factory=dict, hash=False)
    """What it is called with besides sizes; they overrule them."""
    sizes: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The sizes of its case, of which it is given those that it names."""

    def __post_init__(self):
        object.__setattr__(self, "places", tuple(self.places))
        require_choice("role", self.role, tuple(BUILT_IN))

    @property
    def label(self) -> str:
        """How a reader is told what is on trial: its name, without folders."""
        module, colon, name = self.spec.rpartition(":")
        return f"{Path(module).name}{colon}{name}"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A TinyLM, or a user's model: its attention layer, how many of them, and the vocabulary."""

    nsa: NSAConfig
    """Sizes of the attention. The dense yardstick takes its width and heads from here too."""
    layers: int
    """Blocks."""
    vocab: int
    """Tokens in the vocabulary."""
    attention: str = "nsa"
    """One of ATTENTION_NAMES, or OWN."""
    backend: str = "masked"
    """Backend of the selected branch; OWN for a user's."""
    own: Own | None = None
    """What a user brings, if this is the model that it is in."""

    def __post_init__(self):
        for name in ("layers", "vocab"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: accepts a size above 0")
        require_choice("attention", self.attention, (*ATTENTION_NAMES, *self._own("attention")))
        require_choice("backend", self.backend, (*BACKEND_NAMES, *self._own("backend")))

        if self.brings in ("attention", "backend") and getattr(self, self.brings) != OWN:
            raise ConfigError(f"{self.brings}={getattr(self, self.brings)!r}: what the user brings is called {OWN}")

    def _own(self, role: str) -> tuple[str, ...]:
        return (OWN,) if self.brings == role else ()

    def contestant(self, name: str) -> ModelConfig:
        """Return the model that stands under a name beside others: OWN, `dense`, or a backend of NSA."""
        if name == OWN:
            return self
        if name in ATTENTION_NAMES:
            backend = PLAIN_BACKENDS[0] if self.backend == OWN else self.backend
            return replace(self, attention=name, backend=backend, own=None)
        return replace(self, attention="nsa", backend=name, own=None)

    @property
    def brings(self) -> str | None:
        """What of it is a user's: `attention`, `backend`, `model` or None."""
        return self.own.role if self.own else None

    @property
    def judged_as(self) -> str | None:
        """By whose checks it is judged: a user's `attention`, `backend` or `model`; None for those of NSA alone."""
        return "attention" if self.attention == "dense" and self.brings is None else self.brings

    @property
    def has_reference(self) -> bool:
        """Whether the float64 reference knows its layers: they are NSA, with whatever kernel."""
        return self.attention == "nsa" and self.brings != "model"

    @property
    def route(self) -> str:
        """What its layers name themselves when they run."""
        return OWN if self.attention == OWN else self.backend


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
