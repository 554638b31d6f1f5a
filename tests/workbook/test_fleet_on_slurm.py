"""A fleet on a real Slurm of two nodes: every faulty member is named, a job is found again, and it can be cancelled."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from nsa_lib.runs.environment import PROJECT, notebook_path
from nsa_lib.runs.launchers import slurm
from nsa_lib.runs.launchers.member import Task
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.collect import members_in
from nsa_lib.workbook.fleet.gates import quarantine, ruled
from nsa_lib.workbook.launch import launch
from nsa_lib.workbook.run import open_run
from tests.slurm import WHY_NOT, running

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no Slurm: {WHY_NOT}")

SMALL = {"layers": 2, "seq_len": 128, "vocab": 64, "steps": 60}

FAULTS = {"2": "wrong_bit", "4": "slow_gpu", "7": "sigkill"}

MEMBERS, MISSING = 8, 8
"""Members that are started, and the number of one that is expected and is not."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
        yield environment


@pytest.fixture
def here(cluster, monkeypatch):
    """Let this process find the cluster too."""
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])


def asked(out_dir):
    return {
        "launcher": "slurm", "fleet": "october", "nodes": 2, "gpus_per_node": 4, "time_min": 30, "profile": "laptop",
        "parameters": SMALL, "faults": FAULTS, "expected": str(MEMBERS + 1), "out_dir": str(out_dir),
    }  # fmt: skip


@pytest.fixture(scope="module")
def ran(cluster, tmp_path_factory):
    """Run fleet.ipynb as a user would; return its folder of runs, papermill's exit status and what it printed."""
    out_dir = tmp_path_factory.mktemp("shared")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(notebook_path("fleet"))]
    command += [str(out_dir / "out.ipynb"), "-y", json.dumps(asked(out_dir))]
    ended = subprocess.run(command, env=cluster, capture_output=True, text=True, check=False)
    return out_dir, ended.returncode, ended.stdout + ended.stderr


def test_every_faulty_member_is_named_and_nobody_else(ran):
    out_dir, status, said = ran
    run = open_run("newest:fleet", out_dir=out_dir)
    named = {one.name if one.member is None else one.member.rank: one for one in quarantine(ruled(run))}
    rules = {rank: {finding.rule for finding in one.findings} for rank, one in named.items()}
    assert status != 0
    assert run.verdict == "NO-GO", said[-3000:]
    assert rules[2] == {"fingerprints"}
    assert rules[4] == {"speed"}
    assert "verdicts" in rules[7]
    assert "SIGKILL" in named[7].why
    assert rules[f"member {MISSING}"] == {"members"}
    assert set(rules) == {2, 4, 7, f"member {MISSING}"}


def test_a_new_kernel_finds_the_job_again_and_submits_no_other(ran, here, capsys):
    out_dir, *_ = ran
    before = slurm.submitted(out_dir / "fleets" / "october")
    launched = launch(asked(out_dir))
    assert f"job {before['job_id']} of this fleet was found" in capsys.readouterr().out
    assert slurm.submitted(out_dir / "fleets" / "october") == before
    assert launched.expected.total == MEMBERS + 1


def test_the_stop_button_cancels_the_job(cluster, here):
    command = ["sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 600"]
    job_id = subprocess.run(command, env=cluster, capture_output=True, text=True, check=True).stdout.strip()
    states = []
    with StopButton() as stop:
        stop.pressed = True
        slurm.wait({"job_id": job_id}, stop=stop, tell=states.append)
    assert states[0] in ("PENDING", "RUNNING", "CONFIGURING")
    assert slurm.state_of(job_id) == ""


@dataclass(frozen=True)
class Told(Task):
    """A task of which each member says who it is and which GPUs it sees."""

    def command(self, rank):
        said = "$SLURM_NODEID $SLURM_LOCALID $CUDA_VISIBLE_DEVICES $SLURM_STEP_GPUS"
        return ["bash", "-c", f"echo {said} > {self.folder}/{rank}.told"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_job_asks_for_gpus_and_each_member_sees_one_of_its_own(here, tmp_path, nodes):
    task = Told(str(tmp_path / "fleet"), "smoke", {}, {})
    (tmp_path / "fleet").mkdir()
    job = slurm.submit(task, nodes=nodes, gpus_per_node=4, partition=None, time_min=5, ask_for_gpus=True)
    with StopButton() as stop:
        slurm.wait(job, stop=stop, tell=lambda state: None)
    told = [(tmp_path / "fleet" / f"{rank}.told").read_text().split() for rank in range(4 * nodes)]
    assert len({(node, gpu) for node, _, gpu, _ in told}) == 4 * nodes == job["members"]
    assert all(gpu == local for _, local, gpu, _ in told)
    assert {given for *_, given in told} == {"0,1,2,3"}, "what Slurm gave each node, as it was asked"


def test_more_gpus_than_a_node_has_are_refused_in_one_line(here, tmp_path):
    with pytest.raises(ConfigError, match="launcher=slurm: refused: ") as refused:
        slurm.submit(
            Told(str(tmp_path), "smoke", {}, {}),
            nodes=1, gpus_per_node=5, partition=None, time_min=5, ask_for_gpus=True,
        )  # fmt: skip
    assert "\n" not in str(refused.value)


def shell_line(command):
    """Return the line of fleet.ipynb that begins with a command, as a reader would copy it."""
    cells = nbformat.read(notebook_path("fleet"), as_version=4).cells
    (line,) = [line for cell in cells for line in re.findall(r"`([^`]+)`", cell.source) if line.startswith(command)]
    return line


def test_the_line_for_srun_gives_each_task_a_number_and_a_gpu_of_its_own(cluster, tmp_path):
    papermill = tmp_path / "bin" / "papermill"
    papermill.parent.mkdir()
    said = '"$SLURM_PROCID" "$CUDA_VISIBLE_DEVICES" "$SLURM_NODEID" "$@"'
    one_fails = "exit $(( SLURM_PROCID == 1 ))"
    papermill.write_text(f"#!/bin/bash\necho {said} > {tmp_path}/$SLURM_PROCID.told\n{one_fails}\n")
    papermill.chmod(0o755)
    line = shell_line("srun").replace("--nodes=100", "--nodes=2").replace("--ntasks-per-node=8", "--ntasks-per-node=4")
    environment = {**cluster, "PATH": f"{papermill.parent}:{cluster['PATH']}"}
    ended = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    found = [(tmp_path / f"{rank}.told").read_text().split() for rank in range(8)]
    assert len({(node, gpu) for _, gpu, node, *_ in found}) == 8, ended.stderr
    assert all("," not in gpu for _, gpu, *_ in found)
    given = ["-p", "fleet", "october", "-r", "out_dir", "/shared/reports"]
    assert found[3][3:] == ["notebooks/smoke.ipynb", "/tmp/3.ipynb", *given]


def test_the_line_of_a_container_in_an_indexed_job_makes_a_member_of_its_number(tmp_path, monkeypatch):
    line = shell_line("srun").split("bash -c ")[1].strip("'").replace("$SLURM_PROCID", "$JOB_COMPLETION_INDEX")
    line = line.replace("/tmp/", f"{tmp_path}/").replace("/shared/reports", str(tmp_path / "shared"))
    small = " ".join(f"-p {name} {value}" for name, value in {**SMALL, "layers": 1, "profile": "laptop"}.items())
    told = {"JOB_COMPLETION_INDEX": "3", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    told = {**{name: value for name, value in os.environ.items() if not name.startswith("SLURM")}, **told}
    subprocess.run(["bash", "-c", f"{line} {small}"], env=told, cwd=PROJECT, check=True, capture_output=True)
    (member,) = members_in(tmp_path / "shared" / "fleets" / "october")
    assert (member.rank, member.verdict) == (3, "GO")


def test_a_partition_that_is_not_there_is_refused_in_one_line(here, tmp_path):
    with pytest.raises(ConfigError, match=r"launcher=slurm: refused: .*artition") as refused:
        launch({**asked(tmp_path), "partition": "nowhere"})
    assert "\n" not in str(refused.value)
