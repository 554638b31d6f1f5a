"""Monte Carlo arithmetic: what roundings do to a result, tried by making them at random (Parker, 1997).

In a wide dtype each operation's result is multiplied by 1 + u z, z normal, u one rounding of a narrower dtype. What the
result of all is off by then is what its roundings are worth in that dtype, cancellation and all. Parts that cancel show
in no other way: a small change of input and parameters leaves them alike, roundings do not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Rounded(TorchDispatchMode):
    """Round the result of each operation at random, forward and backward.

    Views, what is written in place, and what is made of no figures, as positions are, stay as they are. A compiled part
    is one operation on the way, and so is one of a higher order, such as FlexAttention.
    """

    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave what is compiled compiled: run eagerly, it might be other code, or none that can run."""
        return True

    def __init__(self, u: float, seed: int):
        super().__init__()
        self.u, self.seed = u, seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        is_view = isinstance(func, OpOverload) and any(part.alias_info is not None for part in func._schema.returns)
        if is_view or not any(isinstance(leaf, Tensor) and _is_rounded(leaf) for leaf in tree_leaves((args, kwargs))):
            return found
        return tree_map_only(Tensor, self._rounded, found)

    def _rounded(self, x: Tensor) -> Tensor:
        if not _is_rounded(x):
            return x
        if x.device not in self.generators:
            self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        real = x.real.dtype if x.is_complex() else x.dtype
        z = torch.randn(x.shape, generator=self.generators[x.device], dtype=real, device=x.device)
        return x * (1 + self.u * z)


def _is_rounded(x: Tensor) -> bool:
    return (x.is_floating_point() or x.is_complex()) and x.layout == torch.strided
