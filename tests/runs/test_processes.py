"""A process ends with all that descends from it: children in sessions of their own, and orphans of dead ones."""

import os
import subprocess
import sys
import textwrap

import pytest

from nsa_lib.runs.processes import adopt_orphans, children, descendants, end_tree
from tests.runs.test_runner import gone

SLEEP = "import time; time.sleep(600)"

CHILD_IN_A_SESSION = f"""
    child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
    print(child.pid, flush=True)
"""

ORPHAN = f"""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
        print(child.pid, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


def started(script, then="time.sleep(600)"):
    """Start a process as a case is started, and return it with the pid that it prints."""
    code = "import os, subprocess, sys, time\n" + textwrap.dedent(script) + then
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("then", ["time.sleep(600)", "", "os.kill(os.getpid(), 9)"])
@pytest.mark.parametrize("script", [CHILD_IN_A_SESSION, ORPHAN])
def test_nothing_that_descends_from_a_process_outlives_it(script, then):
    adopt_orphans()
    others = children(os.getpid())
    process, child = started(script, then)
    if then != "time.sleep(600)":
        process.wait(600)
    end_tree(process, spare=others)
    process.stdout.close()
    assert gone(child)
    assert process.returncode is not None


def test_what_is_spared_goes_on():
    adopt_orphans()
    other = subprocess.Popen([sys.executable, "-c", SLEEP])
    process, _ = started(CHILD_IN_A_SESSION)
    end_tree(process, spare={*children(os.getpid()) - {process.pid}})
    process.stdout.close()
    assert other.poll() is None
    other.kill()
    other.wait()


def test_descendants_are_children_and_their_children():
    process, child = started(CHILD_IN_A_SESSION)
    assert child in descendants(process.pid)
    assert process.pid in children(os.getpid())
    assert child not in children(os.getpid())
    end_tree(process, spare=children(os.getpid()) - {process.pid})
    process.stdout.close()
