"""Try the library with every Python that it promises, and with its oldest and newest torch: `make test-versions`.

A run is made with this Python. Each interpreter of READING that is on this machine then reads it in an environment of
its own, with the newest packages that it can have and without torch: report, compare, figures. Each row of SMOKES makes
a run of its own, which must be GO. Environments are kept in .venvs/; with torch as PyPI has it, built for CUDA, they
take 6 GB each, minutes the first time. An interpreter that is not on this machine is named, and none at all is an
error.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tomllib

from nsa_lib.runs.environment import PROJECT, notebook_path

READING = ("3.10", "3.11", "3.12", "3.13")

SMOKES = (("3.10", "torch==2.5.1"), ("3.13", "torch"))
"""The oldest Python with torch's floor, and the newest with the newest torch that has a wheel for it."""

TINY = {"profile": "laptop", "layers": 1, "seq_len": 128, "vocab": 64, "steps": 60}

READS = """
import sys
from nsa_lib.workbook.run import open_run
run = open_run(sys.argv[1])
assert "torch" not in sys.modules
assert len(run.of("training")) == 60
print(run.verdict, len(run.figures["memory"].data))
"""

VERSIONS = "import platform, torch; print(f'Python {platform.python_version()}, torch {torch.__version__}')"


def interpreter(version: str) -> str | None:
    """Return an interpreter of a version: on PATH, or one that pyenv keeps; None without one that runs."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for path in filter(None, (shutil.which(f"python{version}"), *map(str, kept))):
        says = subprocess.run(
            [path, "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=False
        )
        if says.returncode == 0 and says.stdout.startswith(f"{version}."):
            return path
    return None


def installed(version: str, path: str, torch: str | None = None) -> Path:
    """Return the Python of a version's environment, which is made if it is not there; with a torch if one is asked."""
    folder = PROJECT / ".venvs" / (f"{version}-{torch}" if torch else version)
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        with (PROJECT / "pyproject.toml").open("rb") as file:
            needed = tomllib.load(file)["project"]["dependencies"]
        others = (name for name in needed if not name.startswith("torch"))
        subprocess.run([path, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *others, *([torch] if torch else [])], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", PROJECT], check=True)
        (folder / "installed").touch()
    return python


def smoke(python: Path | str, out_dir: str) -> bool:
    """Make a run with an interpreter, and return whether it is GO."""
    given = [word for name, value in {**TINY, "out_dir": out_dir}.items() for word in ("-p", name, str(value))]
    notebook = [str(notebook_path("smoke")), str(Path(out_dir, "out.ipynb")), "--no-progress-bar", "--engine", "nsa"]
    ended = subprocess.run([python, "-m", "papermill", *notebook, *given], capture_output=True, text=True, check=False)
    if ended.returncode:
        print(ended.stderr)
    return ended.returncode == 0


def main() -> int:
    """Make a run, read it with each version, make those of SMOKES, and return the number of those that failed."""
    wanted = dict.fromkeys((*READING, *(version for version, _ in SMOKES)))
    found = {version: path for version in wanted if (path := interpreter(version))}
    with tempfile.TemporaryDirectory() as out_dir:
        if not smoke(sys.executable, out_dir):
            return 1
        (run,) = Path(out_dir, "runs").iterdir()
        failed = [version for version in READING if version in found and not read(version, found[version], run)]
    failed += [torch for version, torch in SMOKES if version in found and not trains(version, found[version], torch)]
    print(f"not on this machine: {', '.join(v for v in wanted if v not in found) or 'none'}")
    return len(failed) if found else 1


def trains(version: str, path: str, torch: str) -> bool:
    """Make a run with a version of Python and of torch, and say how that ended."""
    python, began = installed(version, path, torch), time.monotonic()
    named = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as out_dir:
        is_go = smoke(python, out_dir)
    print(f"{named}: the smoke is {'GO' if is_go else 'NOT GO'} ({time.monotonic() - began:.0f} s)")
    return is_go


def read(version: str, path: str, run: Path) -> bool:
    """Read a run with a version, and say how that ended."""
    python = installed(version, path)
    (run / "report.html").unlink(missing_ok=True)
    for command in (("-m", "nsa_lib", "report", run), ("-m", "nsa_lib", "compare", run, run), ("-c", READS, run)):
        ended = subprocess.run([python, *map(str, command)], capture_output=True, text=True, check=False)
        if ended.returncode:
            print(f"{version}: {' '.join(map(str, command[:3]))} failed\n{ended.stderr}")
            return False
    page = (run / "report.html").read_text()
    holds = "✔</span> GO" in page and page.count('class="nsa-figure"') >= 4
    print(f"{version}: report, compare and figures {'hold' if holds else 'DO NOT HOLD'}; {ended.stdout.strip()}")
    return holds


if __name__ == "__main__":
    sys.exit(main())
