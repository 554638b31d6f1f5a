"""Which source of this library a process runs, so that notebook and worker can tell whether they run the same."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


@cache
def package_sha256() -> str:
    """Return a sha256 over the modules of the library that this process imported."""
    digest = hashlib.sha256()
    for path in sorted(filter(_is_module, (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")))):
        digest.update(path.as_posix().encode() + b"\0" + (PACKAGE / path).read_bytes())
    return digest.hexdigest()


def _is_module(path: Path) -> bool:
    """Return whether Python can import a file: editors and JupyterLab leave copies beside it that have no such name."""
    return all(part.isidentifier() for part in path.with_suffix("").parts)
