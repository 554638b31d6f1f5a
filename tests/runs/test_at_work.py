"""The runs at work on this machine, found by the processes of their cases."""

import subprocess
import sys

import pytest

from nsa_lib.runs.at_work import MODULES, runs_at_work

WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("module", MODULES)
def test_a_run_is_at_work_as_long_as_a_process_of_it_lives(tmp_path, module):
    case = tmp_path / "smoke-1" / "cases" / "training" / "case.json"
    command = [sys.executable, "-c", WAITS, "-m", module, str(case)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert (tmp_path / "smoke-1").resolve() in runs_at_work()
        process.stdin.close()
        process.wait()
        assert (tmp_path / "smoke-1").resolve() not in runs_at_work()
