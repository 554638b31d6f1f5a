"""What a worker's process knows of how it was started."""

import os
import subprocess
import sys

CODE = """
import os
from nsa_lib.worker.process import started_with
os.environ["SET_BEFORE"], os.environ["SET_LATER"] = "changed", "later"
print([started_with(name) for name in ("SET_BEFORE", "SET_LATER")])
"""


def test_the_environment_at_the_start_is_not_what_the_process_makes_of_it():
    said = subprocess.check_output([sys.executable, "-c", CODE], env={**os.environ, "SET_BEFORE": "a=b"}, text=True)
    assert said.strip() == "['a=b', '']"
