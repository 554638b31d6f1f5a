"""Constant tensors that depend on shapes alone: angles, masks, maps. Built once, so that a layer launches less."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps

import torch


def table(build: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Cache what a function builds from its (hashable) arguments.

    Under torch.compile it is built in the graph instead, where the compiler fuses it into its reader.
    """

    @lru_cache(maxsize=16)
    def cached(*arguments):
        # An inference tensor, built by whoever came first, could never be used in training.
        with torch.inference_mode(False):
            return build(*arguments)

    @wraps(build)
    def look_up(*arguments):
        return build(*arguments) if torch.compiler.is_compiling() else cached(*arguments)

    return look_up
