"""A Slurm of several nodes on this machine, with a munge of its own: for tests, which start it and end it.

It needs Debian's `slurm-wlm` and `munge`, and root. Nodes claim more cores than there are. Nothing of it lies outside
its folder, and no Slurm or munge that this machine has otherwise is touched.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.ports import free_ports

DAEMONS = ("munged", "slurmctld", "slurmd", "srun", "sbatch")

WHY_NOT = next((f"{name} is not installed" for name in DAEMONS if shutil.which(name) is None), "")
WHY_NOT = WHY_NOT or ("" if os.geteuid() == 0 else "it needs root")

PATIENCE_S = 600

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=5
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=8000 Gres=gpu:4 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=8000 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def running(folder: Path):
    """Yield the environment in which Slurm's commands find the Slurm that runs meanwhile, all of it in a folder."""
    folder.mkdir(mode=0o755, parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    (folder / "state").mkdir()
    config = folder / "slurm.conf"
    host = socket.gethostname().split(".")[0]
    config.write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports(3)))
    _imagine_gpus(folder)
    # One thread a member: eight that wake two cores' threads differ by themselves as much as a slow one from the rest.
    environment = {**os.environ, "SLURM_CONF": str(config), "OMP_NUM_THREADS": "1"}
    files = [f"--{name}-file={folder / 'munge'}.{name}" for name in ("pid", "log", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket", *files],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n1"],
        ["slurmd", "-D", "-N", "n2"],
    ]
    started = []
    try:
        for command in commands:
            with (folder / f"{command[0]}-{len(started)}.out").open("wb") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if command[0] == "munged":
                _until((folder / "munge.socket").exists, started)
        _until(lambda: _idle_nodes(environment) == 2, started)
        yield environment
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        _kill_steps(config)
        for process in reversed(started):
            process.wait()


def _kill_steps(config: Path) -> None:
    """Kill the steps of this Slurm: one that has not ended yet tries for ever to tell a controller that is no more."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            is_step = (place / "cmdline").read_bytes().startswith(b"slurmstepd")
            if is_step and f"SLURM_CONF={config}".encode() in (place / "environ").read_bytes().split(b"\0"):
                os.kill(int(place.name), signal.SIGKILL)


GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
"""Devices that every machine has. Slurm takes them for a node's GPUs, counts them and tells jobs which are theirs."""


def _imagine_gpus(folder: Path) -> None:
    lines = [f"NodeName={node} Name=gpu File={gpu}\n" for node in ("n1", "n2") for gpu in GPUS]
    (folder / "gres.conf").write_text("AutoDetect=off\n" + "".join(lines))


def _until(holds, started: list) -> None:
    """Wait until something holds. Raises AssertionError if a daemon ends before, or it takes too long."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        dead = [process.args for process in started if process.poll() is not None]
        assert not dead, f"ended at once: {dead}"
        assert time.monotonic() < ends, "Slurm did not come up"
        time.sleep(0.2)


def _idle_nodes(environment) -> int:
    """Return how many nodes are ready for a job."""
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return said.stdout.split().count("idle")
