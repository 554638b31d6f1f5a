"""A fleet, judged: the runs of its members are read, and one verdict over all is left in a run folder of its own.

It trains nothing. What each member's run says is judged again from its frames: editing a summary.json changes nothing.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from nsa_lib.contract.case import WARMUP_STEPS
from nsa_lib.contract.files import write_json
from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.judgement.gate import ended_well
from nsa_lib.judgement.identity import configuration
from nsa_lib.runs import environment, gpu_health
from nsa_lib.runs.fingerprints import bits_sha256
from nsa_lib.runs.folder import new_run_folder
from nsa_lib.runs.last_beat import is_over, silence
from nsa_lib.runs.launchers.start import runs_of_start
from nsa_lib.runs.member import fleet_folder
from nsa_lib.runs.plan import reproduce
from nsa_lib.runs.provenance import provenance
from nsa_lib.runs.recorded import machine_name, read_info
from nsa_lib.runs.report_file import report_of, told_report
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.fleet.band import SIGMA
from nsa_lib.workbook.fleet.members import NOT_COMPARED, Member, newest_of_each, write_members
from nsa_lib.workbook.fleet.parameters import REQUEST
from nsa_lib.workbook.launch import Launched
from nsa_lib.workbook.questions import judged
from nsa_lib.workbook.run import Run, judged_run, record

OF_MACHINE = ("host", "gpu_uuid", "gpu", "cpu")
"""Of a configuration what members need not have in common: kinds of GPU are told apart."""

ALONE = 32
"""Members up to which one process reads them all; reading one takes about 50 ms."""


def collect(launched: Launched) -> Run:
    """Judge the members of a fleet together, and leave a run folder with the verdict.

    Raises ConfigError, in one line, if there is no run of that fleet.
    """
    members = members_in(fleet_folder(launched.out_dir, launched.fleet))
    if not members:
        raise ConfigError(
            f"fleet={launched.fleet}: no run in {fleet_folder(launched.out_dir, launched.fleet) / 'runs'}; "
            "members are run with -p fleet NAME, or started by launcher=local or slurm"
        )
    folder, created = new_run_folder(launched.out_dir, REQUEST.notebook, str(launched.read["tag"]))
    description = {
        "schema": SCHEMA,
        "run_id": folder.name,
        "notebook": REQUEST.notebook,
        "profile": _shared([member.configuration.get("profile") for member in members]),
        "custom": [],
        "created": created,
        "parameters": launched.parameter_rows,
        "environment": {**environment.machine_facts(), **provenance(judged())},
        "case_ids": [],
        "reproduce": reproduce(REQUEST.notebook, launched.again),
        "report": told_report(),
        "fleet": launched.fleet,
        "expected": asdict(launched.expected),
    }
    with StopButton():  # a press now must not leave half of it
        write_members(folder, members)
        write_json(folder / "run.json", description)
        return record(folder)


def _shared(values: list[object]) -> str:
    """Return the value that all have, or ""."""
    return str(values[0]) if len(set(map(str, values))) == 1 and values[0] is not None else ""


def members_in(folder: Path) -> list[Member]:
    """Return the newest run of each member in the folder of a fleet, of its newest start, each judged anew."""
    folders = runs_of_start(folder)
    if len(folders) <= ALONE:
        return newest_of_each(map(member_in, folders))
    # Spawned: this process may have threads, and a kernel's would be copied in the middle of what they do.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(environment.cores(), mp_context=spawned) as pool:
        return newest_of_each(pool.map(member_in, folders, chunksize=8))


def member_in(folder: Path) -> Member:
    """Return the member whose run a folder holds; of one that cannot be read what its run.json still tells."""
    try:
        return member_of_run(judged_run(folder))
    except ConfigError as error:
        told: dict[str, object] = {"host": folder.name}
        with suppress(ConfigError, OSError, LookupError, TypeError):
            told = _identity(read_info(folder))
        reasons = [*_not_over(folder), f"cannot be read: {error}"]
        return Member(run_id=folder.name, folder=str(folder), reasons=reasons, **told)


def _not_over(folder: Path) -> list[str]:
    """Return what a member that has not ended was last heard to do, [] for one that has."""
    return [] if is_over(folder) else [silence(folder)]


def _identity(info: Mapping[str, object]) -> dict[str, object]:
    own = info["member"]
    return {name: own[name] for name in ("host", "gpu_uuid", "rank")} | {"created": str(info["created"])}


def member_of_run(run: Run) -> Member:
    """Return what a fleet keeps of a member's run, judged now."""
    summary, agreed = run.summary, configuration(run.info)
    fingerprint, why_none = fingerprint_of(run)
    return Member(
        run_id=run.folder.name,
        folder=str(run.folder.resolve()),
        report=report_of(run.folder, run.info.get("report")),
        kind=machine_name(run.info),
        verdict=summary["verdict"],
        reasons=[*_not_over(run.folder), *summary["reasons"]],
        gates={gate["name"]: gate["outcome"] for gate in summary["gates"]},
        configuration={name: value for name, value in agreed.items() if name not in OF_MACHINE},
        fingerprint=fingerprint,
        no_fingerprint=why_none,
        health=gpu_health.recorded_health(run.folder),
        **_identity(run.info),
        **_figures(run),
    )


def _figures(run: Run) -> dict[str, object]:
    """Return pace and memory of a training that came to its end."""
    if not ended_well(run.case("training")):
        return {}
    rows = run.of("training")
    times = rows.loc[rows["step"] > WARMUP_STEPS, "step_ms"].astype(float)
    found: dict[str, object] = {"peak_alloc_bytes": round(rows["peak_alloc_mib"].max() * 2**20)}
    if len(times):
        middle = times.median()
        # The standard error of a median of normal values is 1.2533 times that of their mean.
        error = 1.2533 * SIGMA * (times - middle).abs().median() / len(times) ** 0.5
        found |= {"step_ms": float(middle), "step_error_ms": float(error)}
    return found


def fingerprint_of(run: Run) -> tuple[str | None, str]:
    """Return a hash of all bits that the training's fingerprint tells of, or None and why there is none to compare."""
    training = run.case("training")
    if not ended_well(training):
        return None, "its training did not come to its end"
    found = training["fingerprint"]
    if not found:
        return None, "its training left no fingerprint"
    if not found["deterministic"]:
        return None, f"{NOT_COMPARED}{found['why_not']}"
    return bits_sha256(found), ""
