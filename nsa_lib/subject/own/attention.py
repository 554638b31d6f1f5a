"""A user's attention as a layer of TinyLM, and a user's kernel as a backend of NSA.

Letters: B batch, T tokens, H heads, G groups, D head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nsa_lib.subject.attention.backends import BACKENDS
from nsa_lib.subject.attention.protocol import ROUTE_PREFIX
from nsa_lib.subject.attention.route import named
from nsa_lib.subject.config import BRANCHES, OWN, ModelConfig, Own
from nsa_lib.subject.own.loading import OwnError, load, made_module, provenance


class OwnAttention(nn.Module):
    """A user's attention, [B, T, dim] -> [B, T, dim]; it gives that or a tuple whose first is that.

    Raises OwnError where it gives anything else.
    """

    def __init__(self, own: Own):
        super().__init__()
        self.own = own
        self.inner = made_module(own)
        self._branches = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention's output."""
        with torch.profiler.record_function(ROUTE_PREFIX + OWN):
            found = self.inner(named(x, ROUTE_PREFIX + OWN))
        return checked(self.own, first_of(self.own, found), like=x)

    @property
    def can_select(self) -> bool:
        """Whether it shows which blocks it selects, int64 [B, G, T, n], -1 for none."""
        return hasattr(self.inner, "select")

    def select(self, x: torch.Tensor) -> torch.Tensor:
        """Return the blocks that the queries of x [B, T, dim] select."""
        return self.inner.select(x)

    @property
    def can_show_gates(self) -> bool:
        """Whether it shows its branch gates, [B, H, T, branches]."""
        return hasattr(self.inner, "branch_gates") and not isinstance(self.inner.branch_gates, nn.Module)

    def branch_gates_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return the branch gates of x [B, T, dim]."""
        found = self.inner.branch_gates(x)
        self._branches = found.shape[-1]
        return found

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The names of its branch gates: three are taken to be those of NSA."""
        return BRANCHES if self._branches == len(BRANCHES) else tuple(f"gate {n + 1}" for n in range(self._branches))

    @property
    def block(self) -> int:
        """Tokens of a block that it selects."""
        return int(self.own.sizes["l_sel"])

    @property
    def window_tokens(self) -> int:
        """Tokens that a sliding branch sees, if it has one: the size that its case gives it."""
        return int(self.own.sizes["w"])

    @property
    def window(self) -> int | None:
        """How many tokens before its own a row may see, if it says so."""
        found = getattr(self.inner, "window", None)
        return found if isinstance(found, int) and found > 0 else None

    @property
    def deterministic(self) -> bool:
        """Whether it says that two runs give the same bits."""
        return getattr(self.inner, "deterministic", False) is True


def first_of(own: Own, found: object) -> object:
    """Return a module's output, or the first of a tuple of outputs. Raises OwnError for a tuple of nothing."""
    if not isinstance(found, tuple | list):
        return found
    if not found:
        raise OwnError(f"{own.role}={own.spec}: forward gives an empty {type(found).__name__}")
    return found[0]


def checked(own: Own, found: object, *, like: torch.Tensor, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """Return a tensor that has the shape, dtype and device that are owed. Raises OwnError for another one."""
    if not isinstance(found, torch.Tensor):
        raise OwnError(f"{own.role}={own.spec}: forward gives {type(found).__name__}; accepts a tensor")
    owed = tuple(like.shape) if shape is None else shape
    for what, has, wants in (
        ("shape", tuple(found.shape), owed),
        ("dtype", found.dtype, like.dtype),
        ("device", found.device, like.device),
        ("layout", found.layout, torch.strided),
    ):
        if has != wants:
            raise OwnError(f"{own.role}={own.spec}: forward gives {what} {has}; accepts {wants}")
    return found


def own_kernel(own: Own) -> Callable[..., torch.Tensor]:
    """Return a user's kernel as a backend: it names itself for the profile, and its output is checked."""
    kernel = load(own)

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_indices: torch.Tensor, *, l_sel: int, scale: float
    ) -> torch.Tensor:
        with torch.profiler.record_function(ROUTE_PREFIX + OWN):
            found = kernel(named(q, ROUTE_PREFIX + OWN), k, v, block_indices, l_sel=l_sel, scale=scale)
        return checked(own, first_of(own, found), like=q, shape=(*q.shape[:3], v.shape[-1]))

    return run


def install(model: ModelConfig) -> dict[str, object]:
    """Enter the user's kernel of a case among the backends, if it has one: a process runs one case.

    Returns the provenance of what is hers as the fact `on_trial`, or no fact.
    """
    if model.brings == "backend":
        BACKENDS[OWN] = own_kernel(model.own)
    return {"on_trial": provenance(model.own)} if model.own else {}
