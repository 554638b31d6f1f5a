"""A run says which GPU of which fleet it is of, wherever a scheduler put it, and lies with the others of its fleet."""

import json

import pytest

from nsa_lib.runs import environment
from nsa_lib.runs.environment import place_in_job
from nsa_lib.runs.folder import make_run_folder
from nsa_lib.runs.member import run_tag
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import plan
from tests.runs.test_plan import CPU

TOLD = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID", "JOB_COMPLETION_INDEX", "JOB_NAME")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setattr(environment, "torch_facts", lambda: CPU)
    monkeypatch.setattr(environment, "has_nvidia_device", lambda: False)
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)


def info_of(tmp_path, **given):
    found = plan("smoke", {"profile": "laptop", "out_dir": str(tmp_path), "In": [], **given})
    folder = make_run_folder(found)
    return folder, json.loads((folder / "run.json").read_text())


def test_a_member_is_an_ordinary_run_folder_beside_the_others_of_its_fleet(tmp_path):
    folder, info = info_of(tmp_path, fleet="october", member=3)
    assert folder.parent == tmp_path / "fleets" / "october" / "runs"
    assert info["member"] == {
        "fleet": "october", "rank": 3, "job": None, "host": info["environment"]["host"], "gpu_uuid": None,
    }  # fmt: skip
    assert info["custom"] == [], "being a member makes no other run of it"
    assert folder.name.endswith("-3")


def test_a_run_of_no_fleet_says_nothing_of_one(tmp_path):
    folder, info = info_of(tmp_path)
    assert folder.parent == tmp_path / "runs"
    assert "member" not in info


@pytest.mark.parametrize("name", ["../other", "a/b", ".hidden", "x" * 41])
def test_a_name_that_is_no_folder_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="fleet="):
        info_of(tmp_path, fleet=name)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, {"rank": None, "job": None}),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "42"}, {"rank": 5, "job": "42"}),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, {"rank": None, "job": None}),
        ({"JOB_COMPLETION_INDEX": "7", "JOB_NAME": "fleet"}, {"rank": 7, "job": "fleet"}),
        ({"SLURM_PROCID": "x"}, {"rank": None, "job": None}),
    ],
    ids=["nobody", "srun", "one-task", "kubernetes", "nonsense"],
)
def test_its_number_is_what_the_scheduler_says(monkeypatch, told, expected):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert place_in_job() == expected


def test_a_number_that_is_given_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "7")
    assert info_of(tmp_path, fleet="x")[1]["member"]["rank"] == 7
    assert info_of(tmp_path, fleet="x", member=2)[1]["member"]["rank"] == 2


def test_members_without_a_number_have_their_host_in_the_name_of_their_folder():
    assert run_tag("mine", {"host": "node7", "rank": None}) == "mine-node7"
    assert run_tag("mine", None) == "mine"


def test_a_member_sees_one_gpu_of_those_that_its_process_saw(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment.visible_gpus(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")
    assert environment.visible_gpus(8) == ["GPU-a", "GPU-b"]
    assert environment.pinned_environment("GPU-b")["CUDA_VISIBLE_DEVICES"] == "GPU-b"
