"""One mutant: what is changed where, and who must notice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mutant:
    """One wrong change."""

    name: str
    file: str
    function: str
    """Qualified name of the function that is changed."""
    old: str
    """Text that stands once in it."""
    new: str
    gates: tuple[str, ...]
    """Gates of which one must fail, or must not have run."""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """What the notebook is given besides HONEST."""
    notebook: str = "smoke"
