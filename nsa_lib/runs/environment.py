"""Facts of the machine and of the code, and the environment that a case runs in.

The only reader of os.environ. torch's facts come from a child process, so that nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nsa_lib.contract.machine import cpu_name
from nsa_lib.contract.source import PACKAGE, why_outdated
from nsa_lib.subject.config import ConfigError

PROJECT = PACKAGE.parent
"""The checkout; of an installed library the folder that it lies in."""

PACKAGES = ("papermill", "nbclient", "nbconvert", "ipykernel", "jupyterlab", "plotly", "pandas", "triton")

FACTS_LIMIT_S = 180
"""A cold import of torch from a network disk can take a minute."""

ANSWER_LIMIT_S = 5
"""How long a tool of the machine may take to answer; one that takes longer tells nothing."""

WRITABLE = "accepts a folder that you may write to"

ROOM_MIB = 64
"""Free space that a run needs; a hundred steps leave about 1 MiB."""


def torch_facts() -> dict[str, object]:
    """Return torch's facts of this machine, from a child process. Raises ConfigError if torch cannot be imported."""
    command = [sys.executable, "-m", "nsa_lib.worker.torch_facts"]
    try:  # in a folder without modules: the user's working folder may hold a torch.py
        child = subprocess.run(command, capture_output=True, text=True, timeout=FACTS_LIMIT_S, check=False, cwd="/")
    except subprocess.TimeoutExpired:
        raise ConfigError(f"torch: its import by {sys.executable} did not end in {FACTS_LIMIT_S} s") from None
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise ConfigError(f"torch: cannot be used by {sys.executable}: {reason}")
    return json.loads(child.stdout.splitlines()[-1])


def has_nvidia_device(root: Path = Path("/")) -> bool:
    """Return whether the machine has an NVIDIA GPU, usable or not. WSL2 has no device files; it lends the driver."""
    places = ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*", "usr/lib/wsl/lib/libcuda.so*")
    return any(next(root.glob(place), None) for place in places)


def machine_facts() -> dict[str, object]:
    """Return what a report says of the machine: processor, memory in MiB, packages, NVIDIA driver."""
    return {
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "python": platform.python_version(),
        "driver": _nvidia_driver(),
        "nvlink_gb_per_s": _nvlink_gb_per_s(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "packages": {name: _package_version(name) for name in PACKAGES},
    }


def _nvidia_driver() -> str | None:
    lines = answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return lines[0].strip() if lines else None


def _nvlink_gb_per_s() -> float | None:
    """Return what all NVLinks of the first GPU carry in a direction, in GB/s; None without any."""
    told = "\n".join(answer("nvidia-smi", "nvlink", "--status", "--id", "0") or ())
    rates = [float(rate) for rate in re.findall(r"Link \d+: ([\d.]+) GB/s", told)]
    return sum(rates) or None


def answer(*command: str) -> list[str] | None:
    """Return the lines that a tool prints; None if it is missing, fails, hangs or prints no text."""
    with tempfile.TemporaryFile() as said:
        try:
            tool = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL, start_new_session=True
            )
        except OSError:
            return None
        try:
            status = tool.wait(ANSWER_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(tool.pid, signal.SIGKILL)  # with its children; one that waits for a driver may survive even this
            with suppress(subprocess.TimeoutExpired):
                tool.wait(1)
            return None
        said.seek(0)
        try:
            return said.read().decode().splitlines() if status == 0 else None
        except UnicodeDecodeError:
            return None


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


PLACES = {"rank": ("SLURM_PROCID", "JOB_COMPLETION_INDEX"), "job": ("SLURM_JOB_ID", "JOB_NAME")}
"""Where Slurm and an indexed job of Kubernetes say which of how many tasks a process is, and in which job."""


def place_in_job() -> dict[str, object]:
    """Return what a scheduler says of this process: `rank`, its number among all tasks, and `job`; None if nobody does.

    A job of one process has no ranks: Slurm calls the shell of a batch script 0 too.
    """
    told = {name: next(filter(None, map(os.environ.get, names)), None) for name, names in PLACES.items()}
    rank = told["rank"] if (os.environ.get("SLURM_NTASKS") or "2") != "1" else None
    return {"rank": int(rank) if rank is not None and rank.isdecimal() else None, "job": told["job"]}


def visible_gpus(count: int) -> list[str]:
    """Return the names of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES takes them, given their number."""
    named = [name.strip() for name in (os.environ.get("CUDA_VISIBLE_DEVICES") or "").split(",") if name.strip()]
    return named or [str(number) for number in range(count)]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def pinned_environment(gpu: str | None, *, sharing: int = 1) -> Mapping[str, str]:
    """Return the environment of a process that sees one GPU alone, or without any has its share of the cores."""
    if gpu is not None:
        return {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, cores() // sharing))}


RANKS_SETTINGS = {
    "OMP_NUM_THREADS": "1",  # as torchrun would say with a warning
    "TORCH_FR_BUFFER_SIZE": "2000",
}
"""What ranks are told besides, unless the user says otherwise: how many collectives the flight recorder keeps."""


def case_environment(alloc_conf: str, *, launched: bool = False) -> Mapping[str, str]:
    """Return the environment of a case. Both names of the allocator setting are set: torch 2.5 to 2.13 differ.

    Args:
        alloc_conf: the allocator setting.
        launched: whether torchrun starts it.
    """
    settings = {"PYTORCH_CUDA_ALLOC_CONF": alloc_conf, "PYTORCH_ALLOC_CONF": alloc_conf} if alloc_conf else {}
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")}
    return (RANKS_SETTINGS if launched else {}) | inherited | settings


def prediction_environment() -> Mapping[str, str]:
    """Return the environment of a prediction. It sees no GPU, so that it takes no memory from the case that runs."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def refuse_many_processes() -> None:
    """Raise ConfigError if a launcher started several processes: a run is judged on one GPU."""
    world_size = os.environ.get("WORLD_SIZE") or "1"
    if world_size != "1":
        raise ConfigError(f"WORLD_SIZE={world_size}: a run is one process on one GPU; accepts 1")


def refuse_outdated() -> None:
    """Raise ConfigError if the library has changed since this process imported it: its workers would be of the new."""
    if why := why_outdated():
        raise ConfigError(why)


def require_room(out_dir: Path) -> None:
    """Make the folder of the runs. Raises ConfigError if it cannot be written or its disk is full."""
    try:
        (out_dir / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out_dir={out_dir}: cannot be made ({error.strerror}); {WRITABLE}") from None
    if not os.access(out_dir / "runs", os.W_OK | os.X_OK):
        raise ConfigError(f"out_dir={out_dir}: cannot be written; {WRITABLE}")
    free_mib = shutil.disk_usage(out_dir).free / 2**20
    if free_mib < ROOM_MIB:
        raise ConfigError(f"out_dir={out_dir}: {free_mib:.0f} MiB free on its disk, a run needs {ROOM_MIB}")


def room(out_dir: Path, facts: Mapping[str, object]) -> dict[str, object]:
    """Return what is free now: MiB on the disk of the runs, and the processes that hold memory of torch's GPU."""
    return {
        "disk_free_mib": round(shutil.disk_usage(out_dir).free / 2**20),
        "gpu_processes": _gpu_processes(str(facts.get("gpu_uuid"))),
    }


def _gpu_processes(uuid: str) -> list[str]:
    """Return the processes on a GPU, in words; [] if the driver shows none in this container."""
    query = ("--query-compute-apps=gpu_uuid,pid,used_gpu_memory,process_name", "--format=csv,noheader")
    apps = [line.split(", ", 3) for line in answer("nvidia-smi", *query) or ()]
    # nvidia-smi says GPU-<uuid>, torch the uuid alone.
    return [f"{app[3]} (pid {app[1]}, {app[2]})" for app in apps if len(app) == 4 and app[0].endswith(uuid)]


def oom_kills() -> int | None:
    """Return how many processes the kernel killed for memory in this cgroup, or None where it does not say."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control")):
        if path.exists():
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return None


def user_folders() -> tuple[Path, ...]:
    """Return where a user's files and packages are looked for: the folder of the notebook being run, then this one.

    papermill, the parent of the kernel, names the notebook first and its output last on its command line. JupyterLab
    starts a kernel in the notebook's folder.
    """
    command_line, here = Path(f"/proc/{os.getppid()}/cmdline"), Path.cwd()
    words = command_line.read_bytes().decode(errors="replace").split("\0") if command_line.exists() else []
    notebooks = [word for word in words if word.endswith(".ipynb")]
    if len(notebooks) < 2:
        return (here,)
    started_in = os.path.realpath(f"/proc/{os.getppid()}/cwd")
    return tuple(dict.fromkeys((Path(started_in, notebooks[0]).resolve().parent, here)))


def out_dir_of(given: object) -> Path:
    """Return the folder that holds runs/: the one that is given, or reports/."""
    return Path(str(given)).expanduser().resolve() if given else reports_folder()


def reports_folder() -> Path:
    """Return reports/ of the checkout; of an installed library, which has no project, that of the working folder."""
    return (Path.cwd() if is_installed() else PROJECT) / "reports"


def reports_of(folder: Path) -> Path:
    """Return the folder that holds the runs/ in which a run lies; of one that was copied alone reports/."""
    runs = folder.resolve().parent
    return runs.parent if runs.name == "runs" else reports_folder()


def notebook_path(name: str) -> Path:
    """Return a notebook of the workbook: the checkout's, or the copy that an installed library carries."""
    return (PACKAGE if is_installed() else PROJECT) / "notebooks" / f"{name}.ipynb"


def is_installed() -> bool:
    """Return whether the library came as a wheel, which carries the notebooks (hatch_build.py)."""
    return (PACKAGE / "notebooks").is_dir()


def in_jupyter() -> bool:
    """Return whether this kernel was started by a Jupyter server for a notebook that somebody looks at."""
    return "JPY_SESSION_NAME" in os.environ
