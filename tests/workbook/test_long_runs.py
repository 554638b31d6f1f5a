"""A run of 200,000 steps is judged, drawn and exported in the time, memory and size of a short one."""

import json
import subprocess
import sys

import pytest

from nsa_lib.workbook.run import open_run
from tests.long_run import long_run
from tests.samples import chart_output, code_cell, concluded, export, notebook

STEPS, SPIKE_AT = 200_000, 123_457

MOST_MIB = 300

MOST_CPU_S = 15
"""Three times what an idle machine takes."""

MOST_BYTES = 3_000_000

CHILD = """
import json, sys, time
from pathlib import Path
%s
# Not getrusage, which begins with the memory of the process that started this one.
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(json.dumps([verdict, int(peak.split()[1]) / 1024, time.process_time()]))
"""

RECORD = """
from nsa_lib.workbook.run import record
verdict = record(Path(sys.argv[1])).verdict
"""

EXPLORE = """
from nsa_lib.workbook.explore.measures import closest_gates, open_runs, overview, slow_steps
run, _ = open_runs({"run": sys.argv[1]})
verdict = (overview(run), closest_gates(run), slow_steps(run)) and run.verdict
_ = [chart.bundle() for chart in run.figures.values()]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return long_run(tmp_path_factory.mktemp("runs") / "runs" / "long", STEPS, spike_at=SPIKE_AT)


@pytest.mark.parametrize("work", [RECORD, EXPLORE], ids=["record", "explore"])
def test_a_long_run_takes_little_memory_and_time(folder, work):
    child = subprocess.run(
        [sys.executable, "-c", CHILD % work, str(folder)],
        capture_output=True,
        text=True,
    )
    assert not child.returncode, child.stderr
    verdict, mib, cpu_s = json.loads(child.stdout)
    assert verdict == "GO"
    assert mib < MOST_MIB
    assert cpu_s < MOST_CPU_S


def test_its_report_is_no_larger_than_that_of_a_short_run_and_shows_its_one_spike(folder):
    figures = open_run(folder).figures
    cells = [code_cell(count=number, outputs=[chart_output(chart)]) for number, chart in enumerate(figures.values(), 1)]
    page = export(notebook(*cells, code_cell(count=99, outputs=concluded())))
    assert len(page.encode()) < MOST_BYTES
    shown = {x: y for trace in figures["memory"].data for x, y in zip(trace.x, trace.y, strict=True)}
    assert len(shown) < 10_000
    spikes = [y for trace in figures["memory"].data for x, y in zip(trace.x, trace.y, strict=True) if x == SPIKE_AT]
    assert 40.0 in spikes
