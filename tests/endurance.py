"""Many runs, and runs that are killed: `python -m tests.endurance`.

30 papermill runs in a row, 4 at once, and 20 that are killed at a random moment by TERM, KILL or Ctrl-C. Each must
leave its own folder; none an orphan or a torn file; and after a kill the next run must work. Takes about ten minutes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from nsa_lib.runs.environment import PROJECT
from nsa_lib.workbook.run import open_run

TINY = {"profile": "laptop", "layers": 1, "seq_len": 64, "vocab": 64, "steps": 12, "anomaly": False}

IN_A_ROW, AT_ONCE, KILLED = 30, 4, 20

MARK = "NSA_ENDURANCE"
"""Variable that every process of a run inherits, by which those that are left are found."""

PATIENCE_S = 15
"""How long after a kill its processes may take to be gone."""


def main() -> None:
    """Run all three and say what was found; an assertion stops at the first loss."""
    with TemporaryDirectory(prefix="nsa-endurance-") as folder:
        out_dir = Path(folder)
        for number in range(IN_A_ROW):
            finish(start(out_dir, f"row-{number}"), out_dir, f"row-{number}")
        print(f"{IN_A_ROW} runs in a row: each left its own folder and summary")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tags = [f"once-{number}" for number in range(AT_ONCE)]
            list(pool.map(lambda tag: finish(start(out_dir, tag), out_dir, tag), tags))
        print(f"{AT_ONCE} runs at once: each left its own folder and summary")
        rng, slowest_s = random.Random(7), 0.0
        for number in range(KILLED):
            how = rng.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
            slowest_s = max(slowest_s, kill(start(out_dir, f"killed-{number}"), how, rng.uniform(0.5, 8), out_dir))
        finish(start(out_dir, "after"), out_dir, "after")
        print(f"{KILLED} runs killed: nothing left of them after {slowest_s:.1f} s at most, and a run after them works")


def start(out_dir: Path, tag: str) -> subprocess.Popen:
    """Start papermill on a tiny smoke."""
    command = [sys.executable, "-m", "papermill", str(PROJECT / "notebooks" / "smoke.ipynb")]
    command += [str(out_dir / f"{tag}.ipynb"), "--no-progress-bar", "-p", "out_dir", str(out_dir), "-r", "tag", tag]
    for name, value in TINY.items():
        command += ["-p", name, str(value)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    marked = {**os.environ, MARK: str(out_dir)}
    return subprocess.Popen(command, start_new_session=True, env=marked, **quiet)


def finish(process: subprocess.Popen, out_dir: Path, tag: str) -> None:
    """Wait for a run and check that its folder is its own: INCOMPLETE, since it is too short to be judged."""
    assert process.wait(300) == 1, f"{tag}: exit status {process.returncode}"
    (folder,) = (out_dir / "runs").glob(f"smoke-*-{tag}")
    run = open_run(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["run_id"] == folder.name
    assert summary["verdict"] == run.verdict == "INCOMPLETE"
    assert len(run.steps) == TINY["steps"]


def kill(process: subprocess.Popen, how: signal.Signals, after_s: float, out_dir: Path) -> float:
    """Kill papermill and check what it left; return the seconds until all its processes were gone."""
    time.sleep(after_s)
    process.send_signal(how)
    process.wait(60)
    began = time.monotonic()
    while orphans(out_dir):
        assert time.monotonic() - began < PATIENCE_S, f"{how.name} after {after_s:.1f} s left {orphans(out_dir)}"
        time.sleep(0.1)
    for path in (out_dir / "runs").glob("*/*.json"):
        json.loads(path.read_text())
    return time.monotonic() - began


def orphans(out_dir: Path) -> list[str]:
    """Return the command lines of living workers and kernels that belong to this endurance run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            inherited, words = (p.read_bytes().decode(errors="replace") for p in (path.with_name("environ"), path))
        except OSError:  # it ended while we looked
            continue
        if f"{MARK}={out_dir}\0" in inherited:
            found.append(words.replace("\0", " "))
    return found


if __name__ == "__main__":
    main()
