"""One case of a run, as its plan writes it and its worker reads it; and the steps by which cases are judged.

Nothing here imports torch, so that a notebook and a worker can share it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from nsa_lib.contract.faults import RANK_FAULTS, RANK_FAULTS_AT
from nsa_lib.subject.config import (
    BACKEND_NAMES,
    FUSED,
    LOSS_CHUNK,
    OWN,
    PLAIN_BACKENDS,
    ConfigError,
    ModelConfig,
    NSAConfig,
    Own,
    fused_refusal,
    require_choice,
)

DTYPES = ("float32", "bfloat16", "float16", "float64")

DEVICES = ("cpu", "cuda")

WORKS = ("train", "backward", "timing", "checks", "collectives", "repeat", "snapshot")

ALONE, DDP, FSDP2 = "none", "ddp", "fsdp2"
STRATEGIES = (ALONE, DDP, FSDP2)
"""How ranks share a training: not at all, as copies of the model, or each with a part of it."""

GRAPH = "graph"
"""Value of `compile`: layers under torch.compile, and the whole step as one CUDA graph."""

CAPTURED_STEP = 2
"""The first step that is a replay of the graph; the one before it runs plainly."""

WARMUP_STEPS = 10
"""Steps at the start of a case that no trend is read from: caches fill, kernels compile, optimizer state is made."""

TREND_WINDOW = 50
"""Steps over which the checklist limits growth."""

JUDGED_STEPS = WARMUP_STEPS + TREND_WINDOW
"""The fewest steps of a smoke that can be judged."""

WINDOW_STEPS = 1
"""Steps in each of the two windows that a case counts; one is enough, since counts repeat exactly."""

REPLAYED_STEPS = 10
"""Steps of an attested case that are taken again, if it has so many between its first and its last."""

FRESH_STEPS = 3
"""Steps on fresh tokens that a trained model is shown."""

SNAPSHOT_STEPS = 5
"""Steps of a snapshot: two until steps allocate alike, one that is recorded, two that are traced."""

FEWEST_STEPS = WARMUP_STEPS + WINDOW_STEPS + 1 + WINDOW_STEPS
"""Steps that hold both windows, and one between them."""


@dataclass(frozen=True, kw_only=True)
class CaseConfig:
    """One process of a run: what it trains, for how long, and what it watches."""

    case_id: str
    """Name of the case in its run: `training`, `anomaly`, `profiler`, `dense`."""
    work: str = "train"
    """`train`: whole steps; `backward`: forward and backward without an optimizer; `timing`: contestants in turn;
    `checks`: those of a preflight; `collectives`: what ranks send each other, over sizes; `repeat`: the first steps of
    another case again, for their bits; `snapshot`: whole steps, one of them recorded from allocation to allocation."""
    model: ModelConfig
    seq_len: int
    """Tokens in a sequence."""
    batch: int
    """Sequences in a step, those of all ranks together."""
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
    compile: bool | str = False
    """Each layer under torch.compile; `graph`: and the whole step as one CUDA graph."""
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
    attest: bool = False
    """Record its first, middle and last step, and judge them by the reference when all is measured."""
    show_fresh: bool = False
    """After its last step, show the model tokens that it has not seen."""
    profile_operators: bool = False
    """Under torch.profiler, early and late."""
    look: bool = False
    """After its last step, keep what its attention looks at."""
    seq_lens: tuple[int, ...] = ()
    """Lengths of the sweep of a `timing` case."""
    backends: tuple[str, ...] = PLAIN_BACKENDS
    """Backends that a `timing` or `checks` case goes through."""
    fault: str = "none"
    """Seeded fault, one of `contract.faults`; in a case of several ranks it strikes one of them."""
    ranks: int = 1
    """Processes that it runs in, one a GPU, each with its share of the batch."""
    nodes: int = 1
    """Machines that they are spread over, as many on each."""
    digest_parts: int = 0
    """Parts of the parameters of which digests are recorded, for comparison with other cases and ranks; 0 for none."""
    fingerprint: bool = False
    """Record hashes of what it computes (`contract.fingerprint`)."""
    repeats: str = ""
    """The case whose first steps a `repeat` takes again."""
    strategy: str = ALONE
    """How the ranks share the training, one of STRATEGIES."""
    micro_batches: int = 1
    """Parts of a batch that one process takes one after another, adding up their gradients."""

    def __post_init__(self):
        object.__setattr__(self, "seq_lens", tuple(self.seq_lens))
        object.__setattr__(self, "backends", tuple(self.backends))
        for name in ("seq_len", "batch", "steps", "loss_chunk", "device_budget_gib", "ranks", "nodes", "micro_batches"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: accepts a size above 0")
        require_choice("work", self.work, WORKS)
        require_choice("dtype", self.dtype, DTYPES)
        require_choice("device", self.device, DEVICES)
        if self.data != "synthetic" and self.model.vocab < 256:
            raise ConfigError(f"vocab={self.model.vocab}, data={self.data}: bytes need a vocab of 256 or more")
        self._sized_own()
        if self.model.attention == "dense" and (self.check_attention or self.look):
            raise ConfigError("attention=dense: selects nothing; accepts check_attention=False, look=False only")
        known = (*BACKEND_NAMES, OWN)
        if not self.backends or len(set(self.backends)) < len(self.backends) or set(self.backends) - set(known):
            raise ConfigError(f"backends={self.backends}: accepts one or more of {', '.join(known)}")
        if self.needs_fused and (refusal := fused_refusal(self.model.nsa, self.dtype, self.device)):
            raise ConfigError(f"backend={FUSED}, {refusal}")
        self._check_compile()
        self._check_ranks()

    def _sized_own(self) -> None:
        """Give what a user brings the sizes of this case, the longest sequence among them."""
        own, model = self.model.own, self.model
        if own is not None:
            lengths = {"seq_len": max((self.seq_len, *self.seq_lens)), "batch": self.batch}
            sizes = {**asdict(model.nsa), "layers": model.layers, "vocab": model.vocab, **lengths}
            for unoffered in ("branches", "rope_base"):
                del sizes[unoffered]
            object.__setattr__(self, "model", replace(model, own=replace(own, sizes=sizes)))

    def _check_compile(self) -> None:
        if self.compile not in (False, True, GRAPH):
            raise ConfigError(f"compile={self.compile!r}: accepts False, True or {GRAPH}")
        if self.compile and self.device == "cpu" and self.work != "checks":
            why = "the memory tracker cannot see into compiled code; needs cuda"
            raise ConfigError(f"compile={self.compile}, device=cpu: {why}")
        if self.is_graph and self.work != "train":
            raise ConfigError(f"compile={GRAPH}, work={self.work}: only a whole step is captured; accepts work=train")

    def _check_ranks(self) -> None:
        require_choice("strategy", self.strategy, STRATEGIES)
        if self.ranks > 1 and not self.is_launched:
            raise ConfigError(f"ranks={self.ranks}, strategy={self.strategy}: accepts {DDP} or {FSDP2}")
        if self.batch % self.ranks:
            raise ConfigError(f"batch={self.batch}, ranks={self.ranks}: batch must be a multiple of ranks")
        if self.batch % self.micro_batches:
            raise ConfigError(f"batch={self.batch}, micro_batches={self.micro_batches}: batch must be a multiple of it")
        if self.micro_batches > 1 and (self.work != "train" or self.is_launched or self.is_graph):
            raise ConfigError(
                f"micro_batches={self.micro_batches}: accepts 1 but where one process trains step by step"
            )
        if self.ranks % self.nodes:
            raise ConfigError(f"ranks={self.ranks}, nodes={self.nodes}: ranks must be a multiple of nodes")
        if self.fault in {**RANK_FAULTS, **RANK_FAULTS_AT} and self.ranks == 1:
            raise ConfigError(f"fault={self.fault}: strikes one of several ranks; accepts a case of 2 or more")
        alone = ("compile", "check_attention", "compare_selected", "attest", "show_fresh", "look")
        if self.is_launched and (asked := [name for name in alone if getattr(self, name)]):
            raise ConfigError(f"{asked[0]}=True, strategy={self.strategy}: accepts False where ranks share a model")

    @property
    def is_launched(self) -> bool:
        """Whether torchrun starts its processes."""
        return self.strategy != ALONE or self.work == "collectives"

    @property
    def budget_mib(self) -> float | None:
        """The emulated device's memory in MiB, or None."""
        return None if self.device_budget_gib is None else 1024 * self.device_budget_gib

    @property
    def is_graph(self) -> bool:
        """Whether its steps are replays of a CUDA graph."""
        return self.compile == GRAPH

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
        nsa, own = NSAConfig(**case["model"].pop("nsa")), case["model"].pop("own", None)
        return cls(model=ModelConfig(nsa=nsa, own=own and Own(**own), **case.pop("model")), **case)
