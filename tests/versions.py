"""Read a run with every Python that the library promises: `make test-versions`.

A run is made with this Python, then each interpreter of VERSIONS that is on this machine reads it in an environment of
its own, kept in .venvs/, with the newest packages that it can have and without torch: report, compare, figures. One
that is not on this machine is named, and none at all is an error.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

from nsa_lib.runs.environment import PROJECT, notebook_path

VERSIONS = ("3.10", "3.11", "3.12", "3.13")

TINY = {"profile": "laptop", "layers": 1, "seq_len": 128, "vocab": 64, "steps": 60}

READS = """
import sys
from nsa_lib.workbook.run import open_run
run = open_run(sys.argv[1])
assert "torch" not in sys.modules
assert len(run.of("training")) == 60
print(run.verdict, len(run.figures["memory"].data))
"""


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


def installed(version: str, path: str) -> Path:
    """Return the Python of a version's environment, which is made if it is not there."""
    folder = PROJECT / ".venvs" / version
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        with (PROJECT / "pyproject.toml").open("rb") as file:
            needed = tomllib.load(file)["project"]["dependencies"]
        subprocess.run([path, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *(name for name in needed if not name.startswith("torch"))], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", PROJECT], check=True)
        (folder / "installed").touch()
    return python


def main() -> int:
    """Make a run, read it with each version, and return the number of those that could not."""
    with tempfile.TemporaryDirectory() as out_dir:
        given = [word for name, value in {**TINY, "out_dir": out_dir}.items() for word in ("-p", name, str(value))]
        notebook = [str(notebook_path("smoke")), str(Path(out_dir, "out.ipynb")), "--no-progress-bar"]
        subprocess.run([sys.executable, "-m", "papermill", *notebook, *given], check=True, stderr=subprocess.DEVNULL)
        (run,) = Path(out_dir, "runs").iterdir()
        found = {version: path for version in VERSIONS if (path := interpreter(version))}
        failed = [version for version, path in found.items() if not read(version, path, run)]
    print(f"not on this machine: {', '.join(v for v in VERSIONS if v not in found) or 'none'}")
    return len(failed) if found else 1


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
