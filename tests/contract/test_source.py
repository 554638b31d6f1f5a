"""A process knows whether the files of the library are still those that it imported; seen on a copy of the library."""

import shutil
import subprocess
import sys

import pytest

from nsa_lib.contract.source import OTHER_SOURCE, PACKAGE, package_sha256, sha256_on_disk, why_outdated

TELLS = """
import sys
from pathlib import Path
from nsa_lib.contract import source
before = source.package_sha256()
path = source.PACKAGE / "contract" / "source.py"
%s
assert source.package_sha256() == before
print(source.why_outdated())
source.require_source(before)
"""

CHANGES = {
    "edited": "path.write_text(path.read_text() + '# edited')",
    "taken away": "path.unlink()",
    "a module more": "(path.parent / 'pulled.py').touch()",
}


@pytest.fixture
def tell(tmp_path):
    """Run a script with a copy of the library."""
    shutil.copytree(PACKAGE, tmp_path / "nsa_lib", ignore=shutil.ignore_patterns("__pycache__"))

    def ran(change):
        command = [sys.executable, "-c", TELLS % change]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    return ran


@pytest.mark.parametrize("change", CHANGES)
def test_a_process_whose_source_has_changed_begins_no_work(tell, tmp_path, change):
    told = tell(CHANGES[change])
    assert told.returncode == OTHER_SOURCE, told.stderr
    assert told.stdout.startswith(f"nsa_lib in {tmp_path / 'nsa_lib'} has changed since the notebook imported it; ")
    assert "restart the kernel" in told.stdout
    assert told.stderr.count("\n") == 1


def test_one_whose_source_is_as_it_was_works_on(tell):
    told = tell("(path.parent / 'source.py~').touch(); path.touch()")
    assert (told.returncode, told.stdout, told.stderr) == (0, "\n", "")


def test_a_file_that_vanishes_while_it_is_read_is_other_source(tmp_path, monkeypatch):
    assert (sha256_on_disk(), why_outdated()) == (package_sha256(), "")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr("nsa_lib.contract.source.PACKAGE", tmp_path)
    assert sha256_on_disk() != package_sha256()
