"""What is read of machine and code, on made-up projects and processes; nothing here imports torch for its facts."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from nsa_lib.runs import environment
from nsa_lib.subject.config import ConfigError
from nsa_lib.worker import torch_facts

BOTH_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


# The environment of a case


def test_both_names_of_the_allocator_setting_are_set_and_none_is_inherited(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for name in BOTH_NAMES:
        monkeypatch.setenv(name, "max_split_size_mb:64")
    given = environment.case_environment("expandable_segments:True")
    assert [given[name] for name in BOTH_NAMES] == ["expandable_segments:True"] * 2
    bare = environment.case_environment("")
    assert not set(BOTH_NAMES) & set(bare)
    assert given["CUDA_VISIBLE_DEVICES"] == bare["CUDA_VISIBLE_DEVICES"] == "3"
    assert os.environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64", "the notebook's own environment stays"


def test_a_launcher_that_leaves_the_name_empty_is_none(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    environment.refuse_many_processes()


@pytest.mark.parametrize("world_size", ["2", "0", "many"])
def test_a_launcher_of_many_processes_is_refused(monkeypatch, world_size):
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ConfigError, match=f"WORLD_SIZE={world_size}: .*accepts 1"):
        environment.refuse_many_processes()


def test_one_process_is_fine(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    environment.refuse_many_processes()
    monkeypatch.delenv("WORLD_SIZE")
    environment.refuse_many_processes()


# Room for a run


def test_the_folder_of_the_runs_is_made(tmp_path):
    environment.require_room(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "runs").is_dir()
    environment.require_room(tmp_path / "a" / "b")


def refused(out_dir):
    with pytest.raises(ConfigError) as refusal:
        environment.require_room(out_dir)
    assert str(refusal.value).startswith(f"out_dir={out_dir}: ")
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refused(tmp_path / "file")
    assert "cannot be made" in refused(Path("/proc/reports"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert "cannot be written" in refused(tmp_path)


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    free = SimpleNamespace(free=64 * 2**20)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: free)
    environment.require_room(tmp_path)
    free.free -= 2**19 + 1
    assert "63 MiB free on its disk, a run needs 64" in refused(tmp_path)


# torch, from a process of its own


def test_torchs_facts_come_without_torch():
    code = "import json, sys; from nsa_lib.runs.environment import torch_facts; facts = torch_facts()\n"
    code += "assert 'torch' not in sys.modules; print(json.dumps(facts))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    facts = json.loads(child.stdout)
    import torch

    assert facts["torch"] == torch.__version__
    assert facts["cuda_usable"] == torch.cuda.is_available()
    assert bool(facts["cuda_problem"]) != facts["cuda_usable"]
    assert facts["triton"] == (version("triton") if find_spec("triton") else None)


@pytest.mark.parametrize(("spec", "found", "said"), [(None, "3.6.0", None), (True, "3.6.0", "3.6.0")])
def test_tritons_version_is_none_where_it_cannot_be_imported(monkeypatch, spec, found, said):
    monkeypatch.setattr(torch_facts, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch_facts, "version", lambda name: found)
    assert torch_facts.torch_facts()["triton"] == said


def test_triton_of_another_distribution_is_there_all_the_same(monkeypatch):
    def unheard_of(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(torch_facts, "find_spec", lambda name: True)
    monkeypatch.setattr(torch_facts, "version", unheard_of)
    assert torch_facts.torch_facts()["triton"] == "unknown"


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Put a shell script in the place of the interpreter."""

    def replaced(script):
        fake = tmp_path / "python"
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(fake))

    return replaced


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo Traceback >&2; echo 'ModuleNotFoundError: No module named torch' >&2; exit 1", "No module named torch"),
        ("exit 3", "exit status 3"),
        ("exec sleep 30", "did not end in 0.2 s"),
    ],
)
def test_a_torch_that_cannot_be_used_is_refused_in_one_line(python, monkeypatch, script, words):
    monkeypatch.setattr(environment, "FACTS_LIMIT_S", 0.2 if "sleep" in script else 60)
    python(script)
    with pytest.raises(ConfigError) as refusal:
        environment.torch_facts()
    assert str(refusal.value).startswith("torch: ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_torch_prints_besides_its_facts_is_passed_over(python):
    python("""echo 'a warning'; echo '{"torch": "2.5.1"}'""")
    assert environment.torch_facts() == {"torch": "2.5.1"}


def test_the_facts_of_this_machine_are_true(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    facts = environment.machine_facts()
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert facts["memory_mib"] == pytest.approx(int(meminfo["MemTotal"].split()[0]) / 1024, abs=1)
    assert 1 <= facts["cores"] <= os.cpu_count()
    assert facts["cuda_visible_devices"] == "1"
    assert facts["packages"]["papermill"].count(".") == 2
    json.dumps(facts)


@pytest.mark.parametrize(
    "place", ["dev/nvidia0", "proc/driver/nvidia/gpus/0000:01:00.0", "usr/lib/wsl/lib/libcuda.so.1"]
)
def test_an_nvidia_device_is_seen_where_torch_may_not_see_it(tmp_path, place):
    (tmp_path / "usr/lib/wsl/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/wsl/lib/libd3d12.so").touch()  # WSL2 with a GPU of another maker
    assert not environment.has_nvidia_device(tmp_path)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()
    assert environment.has_nvidia_device(tmp_path)


def test_modules_in_the_working_folder_do_not_reach_torch(tmp_path, monkeypatch):
    for module in ("profile", "random", "torch"):
        (tmp_path / f"{module}.py").write_text(f"raise SystemExit('{module} of the user')")
    monkeypatch.chdir(tmp_path)
    assert environment.torch_facts()["torch"].count(".") >= 2


@pytest.mark.parametrize("said", ["sleep 60 & wait", "exec sleep 60", r"printf '\377\376'", "exit 3"])
def test_a_tool_that_hangs_prints_bytes_or_fails_tells_nothing(tmp_path, monkeypatch, said):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{said}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(environment, "ANSWER_LIMIT_S", 0.5)
    assert environment.machine_facts()["driver"] is None
    assert environment.room(tmp_path, {"gpu_uuid": "x"})["gpu_processes"] == []


def test_a_tool_that_cannot_be_executed_tells_nothing(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("no program")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.machine_facts()["driver"] is None


# nvidia-smi itself


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Put an nvidia-smi that is a shell script alone on PATH."""

    def put(script):
        fake = tmp_path / "bin" / "nvidia-smi"
        fake.parent.mkdir()
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", str(fake.parent))

    return put


def test_the_processes_on_the_gpu_are_those_that_the_drivers_tool_names(smi, tmp_path):
    asked = "--query-compute-apps=gpu_uuid,pid,used_gpu_memory,process_name --format=csv,noheader"
    rows = ("GPU-4f2a, 7, 512 MiB, /usr/bin/python, a", "GPU-9999, 8, 5 MiB, b", "[N/A]")
    smi(f"[ \"$*\" = '{asked}' ] || exit 1\n" + "\n".join(f"echo '{row}'" for row in rows))
    room = environment.room(tmp_path, {"gpu_uuid": "4f2a"})
    assert room["gpu_processes"] == ["/usr/bin/python, a (pid 7, 512 MiB)"]
    assert environment.room(tmp_path, {})["gpu_processes"] == []


def test_a_drivers_tool_that_fails_names_no_process(smi, tmp_path):
    smi("echo 'GPU-4f2a, 7, 512 MiB, python'; exit 9")
    assert environment.room(tmp_path, {"gpu_uuid": "4f2a"})["gpu_processes"] == []


def test_without_the_drivers_tool_the_free_disk_is_still_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: SimpleNamespace(free=1500.4 * 2**20))
    assert environment.room(tmp_path, {"gpu_uuid": "4f2a"}) == {"disk_free_mib": 1500, "gpu_processes": []}
