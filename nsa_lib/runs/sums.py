"""What the files of a run were when they were written: SHA256SUMS in its folder, as `sha256sum --check` reads it.

The runner lists run.json when it has made the folder, and the files of a case when the case has ended. So a digit that
is edited later is seen, in whatever file a verdict is made from. Not covered: somebody who edits a file and its line
too; files that only show and decide nothing (summary.json, CSV, predictions, logs, the report).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from nsa_lib.contract.files import write_text
from nsa_lib.contract.fingerprint import FILE as FINGERPRINT_FILE

SUMS = "SHA256SUMS"

OF_A_CASE = ("case.json", "result.json", FINGERPRINT_FILE, "heartbeat.jsonl")
"""Files of a case, or of a rank of it, that a verdict is made from."""

CHUNK_BYTES = 2**20


def case_files(case_folder: Path) -> list[Path]:
    """Return the files of a case, and of its ranks, that a verdict is made from."""
    return sorted(path for path in case_folder.rglob("*") if path.name in OF_A_CASE)


def seal(folder: Path, files: Iterable[Path]) -> None:
    """List the sums of some files of a run folder, beside those that are listed already."""
    sums = _listed(folder) | {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    write_text(folder / SUMS, "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items())))


def changes(folder: Path) -> tuple[str, ...]:
    """Return, a sentence each, which files of a run are not those that were listed.

    A case without a result has not ended, and none of its files is listed.
    """
    return tuple(_changes(folder))


def _changes(folder: Path) -> Iterator[str]:
    sums = _listed(folder)
    if not sums:
        yield f"it has no {SUMS}, so nobody knows whether its files are those that its workers wrote"
        return
    for name, sha256 in sums.items():
        if not (folder / name).is_file():
            yield f"{name} is listed in {SUMS} and not there"
        elif _sha256(folder / name) != sha256:
            yield f"{name} was changed after the run"
    ended = [path.parent for path in folder.glob("cases/*/result.json")]
    present = [folder / "run.json", *(path for case_folder in ended for path in case_files(case_folder))]
    for name in (path.relative_to(folder).as_posix() for path in present):
        if name not in sums:
            yield f"{name} is not listed in {SUMS}: it was not there when the run ended"


def _listed(folder: Path) -> dict[str, str]:
    """Return the listed sums by the path of the file in the run folder; a line that is none has a path that is none."""
    path = folder / SUMS
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return {name or line: sha256 for line in lines for sha256, _, name in [line.partition("  ")]}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
