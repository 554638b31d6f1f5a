"""Which code a run is of: its git commit, and a hash of the source that runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from nsa_lib.contract.source import package_sha256
from nsa_lib.runs import environment


def provenance(notebooks: Iterable[str]) -> dict[str, str | None]:
    """Return the git commit, or None without git, and a sha256 over the library and the notebooks of these names."""
    return {"git_commit": _git_commit(), "source_sha256": source_sha256(notebooks)}


def _git_commit() -> str | None:
    if not (environment.PROJECT / ".git").exists():
        return None
    head = environment.answer("git", "-C", str(environment.PROJECT), "rev-parse", "HEAD")
    if not head:
        return None
    changed = environment.answer("git", "-C", str(environment.PROJECT), "status", "--porcelain", "--untracked-files=no")
    return head[0].strip() + ("" if changed == [] else "-dirty" if changed else "-unknown")


def source_sha256(notebooks: Iterable[str]) -> str:
    """Return a sha256 over nsa_lib/ and the project's notebooks of these names.

    Of a notebook it takes the cells' sources without the parameters. So the hash stays the same after a run in
    JupyterLab, with other values there, and beside an output that papermill left.
    """
    digest = hashlib.sha256(package_sha256().encode())
    for name in notebooks:
        path = environment.PROJECT / "notebooks" / f"{name}.ipynb"
        for cell in json.loads(path.read_text())["cells"] if path.exists() else ():
            if "parameters" not in cell["metadata"].get("tags", ()):
                digest.update(f"{cell['cell_type']}\0{''.join(cell['source'])}\0".encode())
    return digest.hexdigest()
