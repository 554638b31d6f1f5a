"""Keep the fingerprint of a run, so that later runs can be compared with it: `fingerprint=` of a smoke."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nsa_lib.runs.fingerprints import keep
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.fleet.gates import quarantine, ruled
from nsa_lib.workbook.fleet.members import fleet_of
from nsa_lib.workbook.fleet.parameters import REQUEST as FLEET
from nsa_lib.workbook.run import Run, judged_run

FOLDER = "fingerprints"
"""Where they are kept if nothing else is said, in the reports folder."""

TRUSTED = ("GO", "REVIEW")


def keep_run(run: Run, folder: Path) -> list[Path]:
    """Keep what a run computed, and return the files; of a fleet one for each kind of GPU, on which its members agree.

    Raises ConfigError for a run whose bits are no yardstick: it is not GO or REVIEW, has a seeded fault, left no
    fingerprint, or its kernels add in no fixed order.
    """
    if (fault := _seeded(run)) != "none":
        raise ConfigError(f"{run.folder.name}: it has a seeded fault, {fault}")
    if run.verdict not in TRUSTED:
        raise ConfigError(
            f"{run.folder.name}: it is {run.verdict}; only the bits of a run that is GO are worth keeping"
        )
    if run.info["notebook"] == FLEET.notebook:
        kept = [path for member in _of_each_kind(run) for path in keep_run(judged_run(member), folder)]
        if not kept:
            raise ConfigError(f"{run.folder.name}: none of its members has bits to compare")
        return kept
    found = next((case["fingerprint"] for case in run.each_case() if case["fingerprint"]), None)
    if found is None:
        raise ConfigError(f"{run.folder.name}: a run of {run.info['notebook']}, none of its cases left a fingerprint")
    return [keep(found, folder)]


def _seeded(run: Run) -> str:
    return next((str(row["value"]) for row in run.info["parameters"] if row["name"] == "fault"), "none")


def _of_each_kind(run: Run) -> Iterator[str]:
    """Yield the folder of a healthy member of each kind of GPU that has bits to compare."""
    named = {one.member.key for one in quarantine(ruled(run)) if one.member is not None}
    for members in fleet_of(run).by_kind().values():
        yield from [m.folder for m in members if m.fingerprint and m.key not in named][:1]
