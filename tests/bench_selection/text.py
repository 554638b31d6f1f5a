"""Text to train on: the library's own sources, notebooks and documents, and those of Python's standard library."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nsa_lib.runs.environment import PROJECT

OURS = ("nsa_lib", "tests", "notebooks", "params")
SUFFIXES = (".py", ".md", ".ipynb", ".yaml")
HELD_OUT = 1 / 50
"""Share of the text that is not trained on."""


@dataclass(frozen=True)
class Text:
    """Bytes to train on, and bytes to look at afterwards."""

    trained: bytes
    held_out: bytes
    files: int


def text(*, most_bytes: int) -> Text:
    """Return so many bytes of files at most, in an order that does not depend on the machine's folders."""
    files = list(_files())
    random.Random(0).shuffle(files)
    whole, count = bytearray(), 0
    while count < len(files) and len(whole) < most_bytes:
        whole += files[count].read_bytes() + b"\n"
        count += 1
    cut = int(len(whole) * (1 - HELD_OUT))
    return Text(bytes(whole[:cut]), bytes(whole[cut:]), count)


def _files() -> Iterator[Path]:
    """Yield the files, ours first; installed packages are not of the standard library."""
    for folder in (PROJECT / name for name in OURS):
        yield from (file for file in sorted(folder.rglob("*")) if file.suffix in SUFFIXES)
    yield from sorted(PROJECT.glob("*.md"))
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not {"site-packages", "dist-packages"} & set(file.parts):
            yield file
