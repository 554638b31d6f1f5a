"""Which source of this library a process runs, so that notebook and worker can tell whether they run the same.

A process keeps the modules that it has imported, whatever happens to their files: a kernel lives on for days while its
checkout is pulled or edited. So the hash is taken at import, and held against the files before work is begun.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def sha256_on_disk() -> str:
    """Return a sha256 over the modules of the library as their files are now. Line ends do not count."""
    digest = hashlib.sha256()
    for path in sorted(filter(_is_module, (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")))):
        digest.update(path.as_posix().encode() + b"\0" + _content(PACKAGE / path))
    return digest.hexdigest()


def _is_module(path: Path) -> bool:
    """Return whether Python can import a file: editors and JupyterLab leave copies beside it that have no such name."""
    return all(part.isidentifier() for part in path.with_suffix("").parts)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes().replace(b"\r\n", b"\n")
    except FileNotFoundError:  # taken away since the folder was read: other source, whatever comes in its place
        return b"\0gone"


_IMPORTED = sha256_on_disk()

OTHER_SOURCE = 90
"""Exit status of a process that would run other source than the one that started it: the case was not tried."""


def package_sha256() -> str:
    """Return the sha256 over the modules of the library as this process imported them."""
    return _IMPORTED


def why_outdated() -> str:
    """Return why this process must begin no work, because the library's files have changed since its import; or ""."""
    if sha256_on_disk() == _IMPORTED:
        return ""
    return f"nsa_lib in {PACKAGE} has changed since the notebook imported it; restart the kernel and run again"


def require_source(sha256: str) -> None:
    """Exit with OTHER_SOURCE unless this process has imported the source of that hash, all of it: files still agree."""
    if not sha256 == _IMPORTED == sha256_on_disk():
        print(
            f"nsa_lib in {PACKAGE} is other source than the notebook imported; restart the kernel and run again",
            file=sys.stderr,
        )
        sys.exit(OTHER_SOURCE)
