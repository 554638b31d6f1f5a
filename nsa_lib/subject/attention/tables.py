"""Constant tensors that depend on shapes alone: angles, masks, maps.

Each is built once, so that a layer launches less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps

import torch

_tables: dict[Callable, Callable] = {}
"""The cache of each function that builds a table."""


def table(build: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Cache what a function builds from its (hashable) arguments.

    Under torch.compile it is built in the graph instead, where the compiler fuses it into its reader.
    """

    def built(*arguments):
        # An inference tensor that an earlier caller built could never be used in training.
        with torch.inference_mode(False):
            return build(*arguments)

    @wraps(build)
    def look_up(*arguments):
        if torch.compiler.is_compiling():
            return build(*arguments)
        if build not in _tables:
            _tables[build] = lru_cache(maxsize=16)(built)
        return _tables[build](*arguments)

    return look_up


@contextmanager
def own_tables() -> Iterator[None]:
    """Build every table anew inside, and forget them at the end: no table, nor its memory, passes in or out."""
    global _tables
    outside, _tables = _tables, {}
    try:
        yield
    finally:
        _tables = outside
