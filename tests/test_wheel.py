"""The wheel holds what an installation needs and nothing else, and works where no checkout is."""

import configparser
import importlib
import os
import re
import shlex
import subprocess
import sys
import zipfile

import pytest

from nsa_lib.runs.environment import PROJECT
from nsa_lib.runs.provenance import source_sha256
from nsa_lib.workbook.questions import QUESTIONS, judged
from nsa_lib.workbook.run import open_run

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, PROJECT]
    subprocess.run([*PIP, *build], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_file_of_the_library_is_in_it_and_nothing_else(names):
    kept = {path for path in (PROJECT / "nsa_lib").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(PROJECT).as_posix() for path in kept}
    expected |= {f"nsa_lib/notebooks/{name}.ipynb" for name in QUESTIONS}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"nsa_lib/__main__.py", "nsa_lib/worker/__main__.py", "nsa_lib/report/template/nsa/page.html.j2"} <= names


def test_its_entry_points_lead_to_exporter_and_engine(wheel, names):
    (entry_points,) = [name for name in names if name.endswith("/entry_points.txt")]
    declared = configparser.ConfigParser()
    with zipfile.ZipFile(wheel) as archive:
        declared.read_string(archive.read(entry_points).decode())
    assert {section: list(declared[section]) for section in declared.sections()} == {
        "nbconvert.exporters": ["nsa_html"],
        "papermill.engine": ["nsa"],
    }
    for section in declared.sections():
        for value in declared[section].values():
            module, _, name = value.partition(":")
            assert isinstance(getattr(importlib.import_module(module), name), type)


@pytest.fixture
def python(wheel, tmp_path):
    """Run Python in an empty folder, with the wheel installed in another."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    installed = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=elsewhere, env=installed, capture_output=True, text=True, check=False)

    return run


def test_installed_it_works_from_a_folder_without_a_checkout(python, tmp_path):
    where = python(
        "-c", "import nsa_lib, nsa_lib.report.page as page; print(nsa_lib.__file__, page.TEMPLATES.is_dir())"
    )
    assert where.stdout.split() == [str(tmp_path / "site" / "nsa_lib" / "__init__.py"), "True"], where.stderr
    checked = python("-m", "nsa_lib", "check", "smoke", "-p", "profile", "laptop", "-p", "out_dir", tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "cases: training" in checked.stdout


def test_installed_it_runs_its_own_notebooks_and_leaves_everything_in_reports_of_the_working_folder(python, tmp_path):
    tiny = {"profile": "laptop", "layers": 1, "seq_len": 128, "vocab": 64, "steps": 12, "anomaly": "False"}
    ended = python("-m", "nsa_lib", "run", "smoke", *(word for pair in tiny.items() for word in ("-p", *pair)))
    assert ended.returncode == 1, "too short to be judged"
    assert "INCOMPLETE" in ended.stdout, ended.stderr
    reports = tmp_path / "elsewhere" / "reports"
    assert {path.suffix for path in reports.glob("smoke-*")} == {".ipynb", ".html"}
    (run,) = (reports / "runs").iterdir()
    assert open_run(run).info["environment"]["source_sha256"] == source_sha256(judged()), "the same as the checkout's"
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["reports"]
    again = shlex.split(open_run(run).info["reproduce"])
    assert again[:5] == ["python", "-m", "nsa_lib", "run", "smoke"]
    planned = python("-m", "nsa_lib", "check", *again[4:])
    assert "cases: training" in planned.stdout, planned.stderr
    assert re.search(r"^seq_len +128 +given", planned.stdout, re.MULTILINE)
