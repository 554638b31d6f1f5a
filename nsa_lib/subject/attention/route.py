"""How the selected branch names the code that runs in compiled graphs too."""

from __future__ import annotations

import torch
from torch.profiler import record_function

_LIBRARY = torch.library.Library("nsa", "FRAGMENT")


def named(q: torch.Tensor, name: str) -> torch.Tensor:
    """Return q, whose reader runs in the profiler range `name` (see `protocol.ROUTE_PREFIX`).

    torch.compile leaves ranges out. In its graphs an operator enters the range each time that they run; it returns a
    copy of q, so that it cannot be left out.
    """
    return torch.ops.nsa.named.default(q, name) if torch.compiler.is_compiling() else q


def _named(q: torch.Tensor, name: str) -> torch.Tensor:
    with record_function(name):
        return q.clone()


_LIBRARY.define("named(Tensor q, str name) -> Tensor")
_LIBRARY.impl("named", _named, "CompositeExplicitAutograd")
torch.library.register_fake("nsa::named", lambda q, name: q.clone(), lib=_LIBRARY)
torch.library.register_autograd("nsa::named", lambda ctx, gradient: (gradient, None), lib=_LIBRARY)
