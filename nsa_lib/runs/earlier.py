"""What a notebook's globals still hold of an earlier run, in a kernel in which a run was made before.

JupyterLab sends all cells at once, and a kernel in which one fails turns away only those that have arrived. The cells
that come later are run: they would run the earlier plan, or show its verdict, as if it were what was asked for now.
"""

from __future__ import annotations

import ast
from collections.abc import MutableMapping
from contextlib import suppress

RUN = "run"
"""What every notebook calls its run."""


def forget_earlier(namespace: MutableMapping[str, object]) -> None:
    """Take the earlier run out of a notebook's globals, and what the cell that runs now gives a value."""
    running = (namespace.get("In") or [""])[-1]
    for name in {RUN, *_assigned(str(running))}:
        namespace.pop(name, None)


def _assigned(source: str) -> set[str]:
    """Return the names that a cell assigns; none of a cell with magics."""
    with suppress(SyntaxError):
        statements = [one for one in ast.parse(source).body if isinstance(one, ast.Assign)]
        return {target.id for one in statements for target in one.targets if isinstance(target, ast.Name)}
    return set()
