"""Fingerprints as files: those that a run's workers left, and those that are kept to compare later runs with.

A kept one is the file of a training, under a name that tells of which device, torch and configuration it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Mapping
from pathlib import Path

from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.files import write_json
from nsa_lib.contract.fingerprint import SCHEMA, differing, first_difference, made_of, why_not_deterministic
from nsa_lib.subject.config import ConfigError

NEEDED = ("of", "deterministic", "losses", "steps")

NAME_DIGITS = 8

NAMED_PARTS = 3
"""Differences that a refusal names."""

DATA = "data_sha256"
"""What only the worker knows of what its bits depend on."""


def read_fingerprint(path: Path) -> dict[str, object]:
    """Return the fingerprint in a file. Raises ConfigError, naming the file, if it holds none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no fingerprint can be read ({error})") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or any(name not in found for name in NEEDED):
        raise ConfigError(f"{path}: it is no fingerprint of schema {SCHEMA}")
    return found


def bits_sha256(found: Mapping[str, object]) -> str:
    """Return one hash of all bits of a fingerprint: equal where losses and steps are, if both are of one length."""
    return hashlib.sha256(json.dumps([found["losses"], found["steps"]], sort_keys=True).encode()).hexdigest()


def keep(found: Mapping[str, object], folder: Path) -> Path:
    """Keep a fingerprint in a folder, and return its file; a shorter one with the same bits is replaced.

    Raises ConfigError for one whose bits need not be the same in another run, that has no step, or that differs from
    what is kept there of the same device, versions and code: one of the two is wrong, and a person must say which.
    """
    if not found["deterministic"]:
        raise ConfigError(f"its fingerprint is not worth keeping: {found['why_not']}")
    if not found["losses"]:
        raise ConfigError("its fingerprint has no step")
    path = folder / kept_name(found)
    if path.exists():
        before = read_fingerprint(path)
        if where := first_difference(found, before):
            raise ConfigError(f"{path}: {where} has other bits there; delete that file if it is the wrong one")
        if len(before["losses"]) >= len(found["losses"]):
            return path
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return path


def kept_name(found: Mapping[str, object]) -> str:
    """Return the name under which a fingerprint is kept: device, torch, and a hash of all that it is of."""
    of = found["of"]
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:NAME_DIGITS]
    words = (str(of["device_kind"]), f"torch {of['torch']}", digest)
    return "-".join(re.sub(r"[^a-z0-9.+]+", "_", word.lower()).strip("_") for word in words) + ".json"


def kept_in(place: Path) -> dict[str, dict[str, object]]:
    """Return the fingerprints in a file or a folder of them, by name. Raises ConfigError for a file that holds none."""
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    return {path.with_suffix(".json").name: read_fingerprint(path) for path in files}


def comparable(
    found: Mapping[str, object], kept: Mapping[str, Mapping[str, object]], *, unknown: Container[str] = ()
) -> tuple[dict[str, dict[str, object]], str]:
    """Return those of kept fingerprints that are of the same as another one, and if there is none why not.

    Args:
        found: what a run is `of`, at least.
        kept: by their names.
        unknown: what is not known yet of `found`.
    """
    apart = {name: [part for part in differing(found, one) if part not in unknown] for name, one in kept.items()}
    same = {name: dict(kept[name]) for name, parts in apart.items() if not parts}
    if same:
        return same, ""
    if not apart:
        return {}, "no fingerprint is kept there"
    nearest = min(apart, key=lambda name: len(apart[name]))
    parts = [f"{part} {_told(found, part)}, kept {_told(kept[nearest], part)}" for part in apart[nearest][:NAMED_PARTS]]
    parts += [f"and {len(apart[nearest]) - NAMED_PARTS} more"] if len(apart[nearest]) > NAMED_PARTS else []
    others = ", as are all that are kept" if len(kept) > 1 else ""
    return {}, f"{nearest} is of another run{others}: {'; '.join(parts)}"


def kept_for_run(
    place: str, case: CaseConfig, facts: Mapping[str, object], on_trial: Mapping[str, object] | None
) -> dict[str, dict[str, object]]:
    """Return the kept fingerprints that a run will be compared with, by their names.

    Args:
        place: a kept file, or a folder of them.
        case: the training.
        facts: of the machine and of the code.
        on_trial: what is known of a user's code.

    Raises:
        ConfigError: in one line, if its bits are not comparable, or nothing is kept of such a run.
    """
    if why_not := why_not_deterministic(case):
        raise ConfigError(f"fingerprint={place}: these bits cannot be compared with kept ones, {why_not}")
    on_gpu = case.device == "cuda"
    origin = {
        **{name: facts.get(name) for name in ("torch", "torch_cuda", "triton", "package_sha256")},
        **{name: facts.get(name) if on_gpu else None for name in ("driver", "gpu")},
        "processor": f"{facts.get('cpu')}, {facts.get('cpu_capability')}",
        "on_trial": on_trial,
    }
    kept, why_none = comparable({"of": made_of(case, origin)}, kept_in(Path(place).expanduser()), unknown=(DATA,))
    if not kept:
        raise ConfigError(f"fingerprint={place}: {why_none}; `python -m nsa_lib keep RUN` keeps that of a run")
    return kept


def _told(found: Mapping[str, object], name: str) -> object:
    of = found["of"]
    value = of[name] if name in of else of["case"].get(name)
    return value[:NAME_DIGITS] if name.endswith("sha256") and isinstance(value, str) else value
