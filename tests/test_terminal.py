"""What every command prints on a terminal of 80 columns fits it; paths and commands alone stay whole."""

import ast
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import nbformat
import pytest

from nsa_lib import __main__ as commands
from nsa_lib import selftest
from nsa_lib.contract.lines import WIDTH
from nsa_lib.report.tables import advice_table, gates_table
from nsa_lib.runs import environment, papermill
from nsa_lib.runs.environment import PACKAGE, PROJECT, notebook_path
from nsa_lib.workbook.capacity.figures import ranges_table
from nsa_lib.workbook.fleet.figures import members_table, quarantine_table
from nsa_lib.workbook.questions import QUESTIONS
from nsa_lib.workbook.several_gpus.figures import link_table, memory_table, ranks_table
from nsa_lib.workbook.several_gpus.measures import link_rows, memory_rows, rank_rows
from tests.made_runs import Templates, day, edit, untaught_smoke
from tests.samples import sample_notebook
from tests.workbook.capacity.sweeps import made_sweep
from tests.workbook.fleet.made import fleet, saved
from tests.workbook.several_gpus.made import healthy as ranks_made

FACTS = {"torch": "2.13.0", "cuda_usable": False, "cuda_problem": "torch 2.13.0 is a build without CUDA"}

LONG = "the gate's words, which go on about what was measured and what its limit is, for two lines and more of it"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two smokes that differ in much, one of them NO-GO, and a run of another notebook."""
    out_dir, templates = tmp_path_factory.mktemp("out_dir"), Templates(tmp_path_factory.mktemp("templates"))
    templates.put(out_dir, "smoke", "smoke-20250301T101500Z-a-tag-of-a-user")
    other = templates.put(out_dir, "smoke", "smoke-20250302T101500Z", make=untaught_smoke, created=day(2))
    edit(other / "run.json", custom=["steps=20 (laptop: 100)", "anomaly=False (laptop: True)", "dim=64 (laptop: 128)"])
    templates.put(out_dir, "preflight", created=day(3))
    return out_dir


@pytest.fixture
def printed(monkeypatch, tmp_path, capsys, runs):
    """Run a command on a terminal of 80 columns; the lines that it printed."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setattr(environment, "torch_facts", lambda: FACTS)
    monkeypatch.setattr(environment, "has_nvidia_device", lambda: False)
    monkeypatch.setattr(commands, "write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr(papermill, "supervise", _papermill)
    for module in (commands, environment):
        monkeypatch.setattr(module, "reports_folder", lambda: runs)
    monkeypatch.chdir(tmp_path)

    def lines(*arguments):
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        with suppress(SystemExit):  # a refusal or a help
            commands.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return [*out.splitlines(), *(line.rpartition("\r")[2] for line in err.splitlines())]

    return lines


def _papermill(command, stop, *, tell=lambda: None, **_):
    tell()
    made = sample_notebook("NO-GO", reasons=[f"loss_falls failed at 0 %: {LONG}", f"steps did not run: {LONG}"])
    nbformat.write(made, command[5])
    return 1, False


def too_wide(lines):
    """Return the lines that do not fit and are not one path."""
    return [line for line in lines if len(line) > WIDTH and len(line.split()) > 1]


@pytest.mark.parametrize(
    "notebook", [name for name, asked in QUESTIONS.items() if asked.request.cases or asked.judging]
)
def test_check(printed, notebook):
    lines = printed("check", notebook)
    assert lines
    assert too_wide(lines) == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--help",),
        *[(name, "--help") for name in commands.COMMANDS],
        ("chek",),
        ("check", "smoek"),
        ("check", "smoke", "-p", "stepz", "3"),
        (
            *("check", "smoke", "-p", "steps", "59", "-p", "groups", "2"),
            *("-p", "dtype", "bfloat16", "-p", "memory_snapshot", "True"),
        ),
        ("check", "smoke", "-p", "attention", "tests.worker.preflight.own.honest:Dense"),
        ("check", "preflight", "-p", "attention", "tests.worker.preflight.own.honest:Dense"),
        ("check", "readiness", "-p", "runs", "nothing-of-this-name"),
        ("run", "smoke"),
        ("run", "smoke", "-p", "steps", "ten"),
        ("run", "all"),
        ("run", "all", "-p", "stepz", "3"),
        ("report", "newest:smoke"),
        ("report", "newest:smok"),
        ("report", "/nowhere/at/all"),
        ("compare", "smoke-20250301T101500Z-a-tag-of-a-user", "smoke-20250302T101500Z"),
        ("compare", "preflight-1", "smoke-20250302T101500Z"),
        ("keep", "newest:smoke"),
        ("keep", "smoke-20250301T101500Z-a-tag-of-a-user"),
    ],
    ids=lambda words: " ".join(words[:4]) or "nothing",
)
def test_other_commands(printed, arguments):
    lines = printed(*arguments)
    assert lines
    assert too_wide(lines) == []


def test_selftest(printed, monkeypatch, tmp_path):
    trial = selftest.TRIALS[0]
    found = selftest.Finding(
        trial.fault, "planted", trial.notebook, trial.verdict, trial.verdict, trial.gate, 12.0, True, LONG, {}
    )
    ends = iter([found, replace(found, caught=False, got="INCOMPLETE")])
    monkeypatch.setattr(selftest, "attempt", lambda trial, folder: next(ends))
    monkeypatch.setattr(commands, "TRIALS", selftest.TRIALS[:2])
    lines = printed("selftest")
    assert [line[0] for line in lines if not line.startswith(" ")][:2] == ["✔", "✘"]
    assert too_wide(lines) == []


PRINTED_WHOLE = ("bring_your_own/story.py", "workbook/prolog.py")
"""What prints the source of a file, and a line of JSON."""


def test_whatever_a_notebook_prints_while_it_runs_is_folded():
    sources = {str(path): path.read_text() for room in ROOMS_OF_A_KERNEL for path in (PACKAGE / room).rglob("*.py")}
    for name in QUESTIONS:
        cells = nbformat.read(notebook_path(name), as_version=4).cells
        sources[name] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    printed = {(name, call) for name, source in sources.items() for call in prints(source)}
    assert len(printed) > 5
    whole = {name for name, call in printed if "folded" not in call}
    assert all(name.endswith(PRINTED_WHOLE) for name in whole), whole


ROOMS_OF_A_KERNEL = ("runs", "report", "workbook")


def prints(source):
    """Return the calls of print in a source."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_tables_of_several_gpus_a_fleet_and_a_capacity(tmp_path):
    several, broken = ranks_made(), saved(fleet(12, m3={"fingerprint": "b" * 64}, m7={"step_ms": 150.0}), tmp_path)
    sweep = made_sweep("seq_len", (2048, 4096), (20_000.0, 10_000.0), (400.0, 500.0))
    shown = [
        ranks_table(rank_rows(several)),
        memory_table(memory_rows(several)),
        link_table(link_rows(several)),
        quarantine_table(broken),
        members_table(broken),
        ranges_table(sweep),
    ]
    for made in (several, broken):
        shown += [gates_table(made.summary["gates"]), advice_table(made.summary["advice"])]
    lines = [line for one in shown for line in repr(one).splitlines()]
    assert len(lines) > 50
    assert too_wide(lines) == []


def test_make_lists_its_targets():
    said = subprocess.run(["make", "-C", PROJECT, "help"], capture_output=True, text=True, check=True).stdout
    assert "make smoke" in said
    assert too_wide(said.splitlines()) == []


def test_what_does_not_fit_is_found():
    assert too_wide(["a word " * 20, "short", "  /" + "x" * 90]) == ["a word " * 20]
