"""What the instrument asks of an attention on trial, beside its output: its parts, its choice, and its route.

Letters: B batch, T tokens, H heads, G groups, D head width, C compressed tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch

from nsa_lib.subject.config import NSAConfig

ROUTE_PREFIX = "nsa::selected::"
"""The selected branch runs in a range of `torch.profiler.record_function` with this name and the backend's after it.
So the code that runs names itself: its route is read from there, and not from what was asked for."""


@runtime_checkable
class Attention(Protocol):
    """An attention that selects blocks, as its checks see it. NSAttention is one."""

    config: NSAConfig
    backend: str
    """Backend of the selected branch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention's output, projected, [B, T, dim] -> [B, T, dim]."""

    def project(self, x: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return all projections of x [B, T, dim] by name, heads apart: [B, heads, T, D].

        `query`; `key_<branch>` and `value_<branch>` for each branch; `branch_gates` [B, H, T, branches], between 0 and
        1, in the order of the config. Queries and the keys of `slc` and `win` are rotated, those of `cmp` are not.
        """

    def compressed_keys(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the compressed keys of projections, rotated, [B, G, C, D]."""

    def choose(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the blocks that the queries of projections select, int64 [B, G, T, n_sel], without a gradient.

        Ascending, padded with -1.
        """

    def select(self, x: torch.Tensor) -> torch.Tensor:
        """Return the blocks that the queries of x [B, T, dim] select, as `choose` does."""

    @property
    def can_select(self) -> bool:
        """Whether it selects blocks, and can show which."""

    @property
    def can_show_gates(self) -> bool:
        """Whether it has branch gates, and can show them."""

    @property
    def gate_names(self) -> tuple[str, ...]:
        """The names of its branch gates."""

    @property
    def block(self) -> int:
        """Tokens of a block that it selects."""

    @property
    def window_tokens(self) -> int:
        """Tokens that its sliding branch sees."""

    def branch_gates_of(self, x: torch.Tensor) -> torch.Tensor:
        """Return the `branch_gates` of x [B, T, dim], without a gradient."""
