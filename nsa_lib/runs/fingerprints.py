"""Fingerprints as files: those that a run's workers left, and those that are kept to compare later runs with.

A kept one is the file of a training, under a name that tells of which device, torch and configuration it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from nsa_lib.contract.files import write_json
from nsa_lib.contract.fingerprint import FILE, SCHEMA, differing
from nsa_lib.subject.config import ConfigError

NEEDED = ("of", "deterministic", "losses", "steps")

NAME_DIGITS = 8


def read_fingerprint(path: Path) -> dict[str, object]:
    """Return the fingerprint in a file. Raises ConfigError, naming the file, if it holds none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no fingerprint can be read ({error})") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or any(name not in found for name in NEEDED):
        raise ConfigError(f"{path}: it is no fingerprint of schema {SCHEMA}")
    return found


def fingerprints_in(folder: Path, case_id: str) -> dict[int, dict[str, object]]:
    """Return the fingerprints of a case of a run folder by rank; a process by itself is rank 0."""
    case_folder = folder / "cases" / case_id
    ranks = {int(path.parent.name.removeprefix("rank")): path for path in case_folder.glob(f"rank[0-9]*/{FILE}")}
    own = {0: case_folder / FILE} if (case_folder / FILE).exists() else {}
    return {rank: read_fingerprint(path) for rank, path in sorted((ranks or own).items())}


def bits_sha256(found: Mapping[str, object]) -> str:
    """Return one hash of all bits of a fingerprint: equal where losses and steps are, if both are of one length."""
    return hashlib.sha256(json.dumps([found["losses"], found["steps"]], sort_keys=True).encode()).hexdigest()


def keep(found: Mapping[str, object], folder: Path) -> Path:
    """Keep a fingerprint in a folder, and return its file; one of the same device, versions and code is replaced.

    Raises ConfigError for one whose bits need not be the same in another run.
    """
    if not found["deterministic"]:
        raise ConfigError(f"its fingerprint is not worth keeping: {found['why_not']}")
    path = folder / kept_name(found)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return path


def kept_name(found: Mapping[str, object]) -> str:
    """Return the name under which a fingerprint is kept: device, torch, and a hash of all that it is of."""
    of = found["of"]
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:NAME_DIGITS]
    words = (str(of["device_kind"]), f"torch {of['torch']}", digest)
    return "-".join(re.sub(r"[^a-z0-9.+]+", "_", word.lower()).strip("_") for word in words) + ".json"


def kept_for(found: Mapping[str, object], place: Path) -> tuple[dict[str, object] | None, str]:
    """Return the kept fingerprint that one can be compared with, and "", or None and why there is none.

    Args:
        found: of a run.
        place: a kept file, or a folder of them.
    """
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    kept = {path: read_fingerprint(path) for path in files}
    apart = {path: differing(found, one) for path, one in kept.items()}
    nearest = min(apart, key=lambda path: len(apart[path]), default=None)
    if nearest is None:
        return None, f"{place}: no fingerprint is kept there"
    if not apart[nearest]:
        return kept[nearest], ""
    said = "; ".join(f"{name} {_told(found, name)}, kept {_told(kept[nearest], name)}" for name in apart[nearest][:3])
    return None, f"{nearest.name} is of another {'run' if len(files) == 1 else 'run, as are all that are kept'}: {said}"


def _told(found: Mapping[str, object], name: str) -> object:
    of = found["of"]
    value = of[name] if name in of else of["case"].get(name)
    return value[:NAME_DIGITS] if name.endswith("sha256") and isinstance(value, str) else value
