"""The launcher `slurm`: one job of as many tasks as there are GPUs, submitted through submitit, an optional extra.

The job belongs to Slurm, not to this process. A notebook whose kernel was restarted finds it again by the file JOB in
the folder of its fleet.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nsa_lib.contract.files import write_json
from nsa_lib.runs import environment
from nsa_lib.runs.launchers.member import Task, own_gpu
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import ConfigError

JOB = "job.json"

SCHEMA = 1

POLL_S = 2.0

OF_ONE_TASK = ("--kill-on-bad-exit=0", "--no-kill")
"""Told to srun: a member that fails, or a node, must not end the others."""


def submit(
    task: Task, *, nodes: int, gpus_per_node: int, partition: str | None, time_min: int, ask_for_gpus: bool
) -> dict[str, object]:
    """Submit a fleet to Slurm and return what JOB holds of it: `job_id`, `members`.

    Raises ConfigError, in one line, if submitit or Slurm is missing, or Slurm refuses the job.
    """
    try:
        from submitit import SlurmExecutor  # an optional extra, which the other launchers need not have
        from submitit.core.utils import FailedJobError
    except ImportError:
        raise ConfigError("launcher=slurm: needs submitit; pip install -e '.[slurm]'") from None
    folder = Path(task.folder)
    try:
        executor = SlurmExecutor(folder / "slurm")
    except RuntimeError as error:
        raise ConfigError(f"launcher=slurm: {error}") from None
    gpus = {"gpus_per_node": gpus_per_node} if ask_for_gpus else {}
    if partition:
        gpus["partition"] = partition
    executor.update_parameters(
        job_name=f"nsa-{folder.name}", nodes=nodes, ntasks_per_node=gpus_per_node, time=time_min,
        srun_args=list(OF_ONE_TASK), stderr_to_stdout=True, **gpus,
    )  # fmt: skip
    try:
        job = executor.submit(run_task, task, gpus_per_node, ask_for_gpus)
    except FailedJobError as error:
        raise ConfigError(f"launcher=slurm: refused: {' '.join(str(error).split())}") from None
    found = {"schema": SCHEMA, "job_id": job.job_id, "members": nodes * gpus_per_node}
    write_json(folder / JOB, found)
    return found


def run_task(task: Task, members_on_host: int, has_gpus: bool) -> int:
    """Run the member that this task of the job is, on its own GPU, and return papermill's exit status."""
    from submitit import JobEnvironment

    place = JobEnvironment()
    visible = environment.visible_gpus(members_on_host)
    gpu = own_gpu(visible, place.local_rank, members_on_host) if has_gpus else None
    command = task.command(place.global_rank)
    pinned = environment.pinned_environment(gpu, sharing=members_on_host)
    return subprocess.run(command, env=pinned, stdin=subprocess.DEVNULL, check=False).returncode


def submitted(folder: Path) -> dict[str, object] | None:
    """Return what JOB holds of a fleet that was submitted before; None if it was not."""
    path = folder / JOB
    return json.loads(path.read_text()) if path.exists() else None


def wait(job: Mapping[str, object], *, stop: StopButton, tell: Callable[[str], None]) -> None:
    """Wait until Slurm no longer has a job; the stop button cancels it.

    Args:
        job: as JOB holds it.
        stop: hears the user.
        tell: is called again and again with the job's state; "" if Slurm's controller does not answer.
    """
    job_id = str(job["job_id"])
    while (state := state_of(job_id)) is None or state:
        tell(state or "")
        if stop.pressed:
            stop.pressed = False
            environment.answer("scancel", job_id)
        time.sleep(POLL_S)


def state_of(job_id: str) -> str | None:
    """Return the state of a job, in Slurm's word; "" if it has none such any more, None if it does not answer."""
    lines = environment.answer("squeue", "--noheader", "--me", "--format=%A %T")
    if lines is None:
        return None
    return next((line.split()[1] for line in lines if line.split()[0] == job_id), "")
