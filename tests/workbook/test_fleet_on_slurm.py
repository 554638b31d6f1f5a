"""A fleet on a real Slurm of two nodes: every faulty member is named, a job is found again, and it can be cancelled."""

import json
import subprocess
import sys

import pytest

from nsa_lib.runs.environment import notebook_path
from nsa_lib.runs.launchers import slurm
from nsa_lib.runs.stop_button import StopButton
from nsa_lib.subject.config import ConfigError
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
    assert states[-1] == "ended"
    assert slurm.state_of(job_id) == ""


def test_a_partition_that_is_not_there_is_refused_in_one_line(here, tmp_path):
    with pytest.raises(ConfigError, match=r"launcher=slurm: refused: .*artition") as refused:
        launch({**asked(tmp_path), "partition": "nowhere"})
    assert "\n" not in str(refused.value)
