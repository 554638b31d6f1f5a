"""Which code a run is of: its git commit, and a hash of the source that runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from nsa_lib.contract.source import package_sha256
from nsa_lib.runs import environment
from nsa_lib.subject.config import ConfigError


def provenance(notebooks: Iterable[str]) -> dict[str, str | None]:
    """Return the git commit, or None without git, and a sha256 over the library, and one over these notebooks too."""
    return {"git_commit": _git_commit(), "package_sha256": package_sha256(), "source_sha256": source_sha256(notebooks)}


def _git_commit() -> str | None:
    if not (environment.PROJECT / ".git").exists():
        return None
    head = _git("rev-parse", "HEAD")
    if not head:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return head[0].strip() + ("" if changed == [] else "-dirty" if changed else "-unknown")


def _git(*asked: str) -> list[str] | None:
    """Return what git says of the checkout, also of one that belongs to another user, as in a container it often does.

    git refuses that for fear of commands in the checkout's own settings; but this process runs its code anyway. Nothing
    is written there, so that no file of its index comes to belong to root.
    """
    project = str(environment.PROJECT)
    return environment.answer("git", "--no-optional-locks", "-c", f"safe.directory={project}", "-C", project, *asked)


def source_sha256(notebooks: Iterable[str]) -> str:
    """Return a sha256 over what executes: the modules of nsa_lib/ and the code of the notebooks of these names.

    Text, empty cells, outputs, line ends and the parameters cell do not count. So the hash stays the same after a run
    in JupyterLab, with other values there, and beside an output that papermill left.
    """
    digest = hashlib.sha256(package_sha256().encode())
    for name in notebooks:
        path = environment.notebook_path(name)
        for code in _code(path) if path.exists() else ():
            digest.update(f"{code}\0".encode())
    return digest.hexdigest()


def _code(notebook: Path) -> Iterator[str]:
    """Yield the source of each code cell of a notebook that is the same in every run.

    Raises ConfigError for a file that is no notebook: half saved, or merged with conflicts.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{notebook}: no notebook ({type(error).__name__}: {error})") from None
    for cell in cells:
        tags = cell["metadata"].get("tags", ())
        source = "".join(cell["source"]).replace("\r\n", "\n").strip()
        if cell["cell_type"] == "code" and source and not {"parameters", "injected-parameters"} & {*tags}:
            yield source
