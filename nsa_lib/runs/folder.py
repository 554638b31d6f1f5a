"""The folder of a run: made once, for this run alone, with run.json that says what it is."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from nsa_lib.contract.files import write_json
from nsa_lib.contract.fingerprint import KEPT
from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.runs.member import member_of, run_tag
from nsa_lib.runs.plan import Plan
from nsa_lib.runs.report_file import told_report
from nsa_lib.runs.sums import seal


def stamp(moment: datetime) -> str:
    """Return a UTC time as it stands in the names of runs and reports."""
    return moment.strftime("%Y%m%dT%H%M%SZ")


def make_run_folder(plan: Plan) -> Path:
    """Make the folder of a run, which no other run gets, and write run.json into it, and what was kept of others."""
    member = member_of(plan.values, plan.environment)
    folder, created = new_run_folder(plan.out_dir, plan.notebook, run_tag(str(plan["tag"]), member))
    description = {
        "schema": SCHEMA,
        "run_id": folder.name,
        "notebook": plan.notebook,
        "profile": plan.profile,
        "custom": list(plan.custom),
        "created": created,
        "parameters": plan.parameter_rows,
        "environment": dict(plan.environment),
        "backends": list(plan.backends),
        "on_trial": plan.on_trial,
        "case_ids": [case.case_id for case in plan.cases],
        "reproduce": plan.reproduce,
        "report": told_report(),
        **({"member": member} if member else {}),
    }
    for name, fingerprint in plan.kept.items():
        (folder / KEPT).mkdir(exist_ok=True)
        write_json(folder / KEPT / name, fingerprint)
    write_json(folder / "run.json", description)
    seal(folder, [folder / "run.json", *folder.glob(f"{KEPT}/*")])
    return folder


def new_output(reports: Path, notebook: str, moment: datetime) -> Path:
    """Make an empty file for the executed notebook of a run, which no other run gets; the report has its name."""
    reports.mkdir(parents=True, exist_ok=True)
    stem, again = f"{notebook}-{stamp(moment)}", 1
    path = reports / f"{stem}.ipynb"
    while True:
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            again += 1
            path = reports / f"{stem}-{again}.ipynb"


def written(output: Path) -> bool:
    """Return whether papermill has written an executed notebook; the empty file is taken away if it has not."""
    if output.exists() and output.stat().st_size == 0:
        output.unlink()
    return output.exists()


def new_run_folder(out_dir: Path, notebook: str, tag: str) -> tuple[Path, str]:
    """Make a folder for a run, which no other run gets, and return it with the time of its making."""
    return new_folder(out_dir / "runs", notebook, tag)


def new_folder(parent: Path, notebook: str, tag: str) -> tuple[Path, str]:
    """Make a folder in `parent` that nobody else gets, and return it with the time of its making."""
    now = datetime.now(timezone.utc)
    stem = "-".join(filter(None, [notebook, stamp(now), tag]))
    folder, again = parent / stem, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder, now.isoformat()
        except FileExistsError:
            again += 1
            folder = parent / f"{stem}-{again}"
