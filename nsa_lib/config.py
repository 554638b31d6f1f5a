"""What a case is made of: the configurations of attention, model and case, and the names that they accept.

Nothing here imports torch, so that a notebook and a worker can share it. Every refusal is one line that names the
value and what is accepted instead.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

FUSED = "fused"
"""The backend of Triton kernels, for CUDA devices alone."""

PLAIN_BACKENDS = ("masked", "gather", "packed")
"""Those that run wherever torch does."""

BACKEND_NAMES = (*PLAIN_BACKENDS, FUSED)

AUTO = "auto"
"""In place of a backend: `fused` where it can run, `masked` elsewhere; decided before a run."""

FUSED_WIDEST = 128
FUSED_BLOCKS = (16, 32, 64, 128)
FUSED_MOST_SELECTED = 32
FUSED_DTYPES = ("bfloat16", "float16", "float32")
"""What the fused kernels take: widest head, sizes of a selection block, blocks a query selects, dtypes."""

ATTENTION_SIZES = ("dim", "heads", "groups", "d_k", "d_v", "l", "d", "l_sel", "n_sel", "w", "phi")
"""Parameters of a run that make the NSAConfig of its layers."""

BRANCHES = ("cmp", "slc", "win")
PHIS = ("mlp", "mean")
DTYPES = ("float32", "bfloat16", "float16", "float64")
DEVICES = ("cpu", "cuda")
NOTEBOOKS = ("preflight", "backward_scaling", "smoke", "backend_contrast", "readiness")
WORKBOOK = (*NOTEBOOKS, "capacity", "explore")
"""Every notebook; `capacity` and `explore` give no verdict and are no part of a validation."""

JUDGED = ("preflight", "backward_scaling", "smoke", "backend_contrast")
"""The notebooks that readiness decides over, in the order in which a validation runs them."""

WORKS = ("train", "backward", "timing", "checks")

WARMUP_STEPS = 10
"""Steps at the start of a case that no trend is read from: caches fill, kernels compile, optimizer state is made."""

TREND_WINDOW = 50
"""Steps over which the checklist limits growth."""

JUDGED_STEPS = WARMUP_STEPS + TREND_WINDOW
"""The fewest steps of a smoke that can be judged."""


BACKWARD_WARMUP_STEPS = 3
"""Iterations at the start of a `backward` case that are not counted."""

LOSS_CHUNK = 512
"""Tokens whose logits exist at a time: at vocab 50,257 about 100 MiB in float32."""

ALLOCATOR_SETTINGS = {
    "default": "",
    "expandable": "expandable_segments:True",
    "max_split": "max_split_size_mb:256",
    "both": "expandable_segments:True,max_split_size_mb:256",
}
"""Allocator settings whose cost is compared; `both` is the checklist's line."""

TRAIN_LAYERS = (1, 3, 5)
"""Layers of the train steps from which the peak of a deeper model is predicted."""


class ConfigError(ValueError):
    """A request that cannot be carried out, in one line that names the parameter and what it accepts."""

    def _render_traceback_(self) -> list[str]:
        """Leave that line in a notebook, and no traceback: nothing of ours is at fault."""
        return [f"ConfigError: {self}"]


@dataclass(frozen=True, kw_only=True)
class NSAConfig:
    """Sizes of one Native Sparse Attention layer (arXiv 2502.11089), in tokens where nothing else is said.

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
        _require_choice("phi", self.phi, PHIS)
        if not self.branches or len(set(self.branches)) < len(self.branches) or not set(self.branches) <= set(BRANCHES):
            raise ConfigError(f"branches={self.branches}: accepts one or more of {', '.join(BRANCHES)}")

    def _require(self, holds: bool, first: str, second: str, rule: str) -> None:
        if not holds:
            raise ConfigError(f"{first}={getattr(self, first)}, {second}={getattr(self, second)}: {rule}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A TinyLM: its attention layer, how many of them, and the vocabulary."""

    nsa: NSAConfig
    """Sizes of the attention; the dense yardstick takes its width and heads from here too."""
    layers: int
    """Blocks."""
    vocab: int
    """Tokens in the vocabulary."""
    attention: str = "nsa"
    """`nsa`, or `dense` for the causal yardstick of the same width."""
    backend: str = "masked"
    """Backend of the selected branch."""

    def __post_init__(self):
        for name in ("layers", "vocab"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: accepts a size above 0")
        _require_choice("attention", self.attention, ("nsa", "dense"))
        _require_choice("backend", self.backend, BACKEND_NAMES)


@dataclass(frozen=True, kw_only=True)
class CaseConfig:
    """One process of a run: what it trains, for how long, and what it watches."""

    case_id: str
    """Name of the case in its run: `training`, `anomaly`, `profiler`, `dense`."""
    work: str = "train"
    """`train`: whole steps; `backward`: forward and backward without an optimizer; `timing`: contestants in turn;
    `checks`: those of a preflight."""
    model: ModelConfig
    seq_len: int
    """Tokens in a sequence."""
    batch: int
    """Sequences in a step."""
    steps: int
    """All steps, those of the warm-up included."""
    warmup_steps: int = WARMUP_STEPS
    """Steps at the start that are not counted."""
    dtype: str
    """Of parameters, gradients and the optimizer's state."""
    grad_checkpointing: bool
    lr: float
    seed: int
    device: str
    data: str = "synthetic"
    """`synthetic`, or the path of a text file that is read as bytes."""
    compile: bool = False
    """Each layer under torch.compile."""
    alloc_conf: str = ""
    """Allocator setting, as in PYTORCH_CUDA_ALLOC_CONF."""
    device_budget_gib: float | None = None
    """Memory of the device that is emulated, on a larger one; None for the device as it is."""
    loss_chunk: int = LOSS_CHUNK
    """Tokens whose logits exist at a time."""
    detect_anomaly: bool = False
    """Under autograd's anomaly detection."""
    check_attention: bool = False
    """Compare its attention with float64 before training."""
    compare_selected: bool = False
    """Compare its selected branch with the reference before training."""
    profile_operators: bool = False
    """Under torch.profiler, early and late."""
    look: bool = False
    """After its last step, keep what its attention looks at."""
    seq_lens: tuple[int, ...] = ()
    """Lengths of the sweep of a `timing` case."""
    backends: tuple[str, ...] = PLAIN_BACKENDS
    """Backends that a `timing` or `checks` case goes through."""
    fault: str = "none"
    """Seeded fault, one of `fault_table`."""

    def __post_init__(self):
        object.__setattr__(self, "seq_lens", tuple(self.seq_lens))
        object.__setattr__(self, "backends", tuple(self.backends))
        for name in ("seq_len", "batch", "steps", "loss_chunk", "device_budget_gib"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: accepts a size above 0")
        _require_choice("work", self.work, WORKS)
        _require_choice("dtype", self.dtype, DTYPES)
        _require_choice("device", self.device, DEVICES)
        if self.data != "synthetic" and self.model.vocab < 256:
            raise ConfigError(f"vocab={self.model.vocab}, data={self.data}: bytes need a vocab of 256 or more")
        if self.model.attention == "dense" and (self.check_attention or self.look):
            raise ConfigError("attention=dense: selects nothing; accepts check_attention=False, look=False only")
        if not self.backends or len(set(self.backends)) < len(self.backends) or set(self.backends) - set(BACKEND_NAMES):
            raise ConfigError(f"backends={self.backends}: accepts one or more of {', '.join(BACKEND_NAMES)}")
        if self.needs_fused and (refusal := fused_refusal(self.model.nsa, self.dtype, self.device)):
            raise ConfigError(f"backend={FUSED}, {refusal}")
        if self.compile and self.device == "cpu":
            raise ConfigError("compile=True, device=cpu: the memory tracker cannot see into compiled code; needs cuda")

    @property
    def budget_mib(self) -> float | None:
        """The emulated device's memory in MiB, or None."""
        return None if self.device_budget_gib is None else 1024 * self.device_budget_gib

    @property
    def needs_fused(self) -> bool:
        """Whether the fused kernels run in it."""
        return FUSED in (self.model.backend, *self.backends)

    def to_json(self) -> str:
        """Return the case as JSON text, for `from_json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> CaseConfig:
        """Return the case that `to_json` wrote. Raises ConfigError or TypeError if it is not one."""
        case = json.loads(text)
        nsa = NSAConfig(**case["model"].pop("nsa"))
        return cls(model=ModelConfig(nsa=nsa, **case.pop("model")), **case)


def fused_refusal(nsa: NSAConfig, dtype: str, device: str) -> str | None:
    """Return why the fused backend cannot run so, naming the parameter and what it accepts, or None if it can."""
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


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r}: accepts {', '.join(choices)}")
