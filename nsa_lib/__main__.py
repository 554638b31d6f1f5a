"""The workbook from a shell: `python -m nsa_lib check | run | report | compare | keep | selftest`.

`run` is papermill with the engine that also writes the HTML, and a name for its output; papermill alone does the same.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not getattr(sys.flags, "safe_path", False):
    del sys.path[0]  # `python -m` puts the working folder there: a random.py of the user's must not be ours

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import nbformat
import yaml
from papermill.iorw import read_yaml_file

from nsa_lib.contract.files import write_text
from nsa_lib.contract.lines import say
from nsa_lib.report import NsaHTMLExporter
from nsa_lib.report.tables import parameters_table
from nsa_lib.report.verdict import read_verdict, wants_verdict
from nsa_lib.runs import papermill
from nsa_lib.runs.environment import out_dir_of, reports_folder, reports_of
from nsa_lib.runs.found import find
from nsa_lib.runs.parameters import read_value, refuse_unknown, unknown
from nsa_lib.runs.report_file import report_beside
from nsa_lib.selftest import TRIALS, selftest
from nsa_lib.subject.config import ConfigError
from nsa_lib.validation import validate
from nsa_lib.workbook.comparison import comparison_page, differences_table, figures_table
from nsa_lib.workbook.decide import REQUEST, foretell
from nsa_lib.workbook.execution import run_notebook
from nsa_lib.workbook.fleet.parameters import REQUEST as FLEET
from nsa_lib.workbook.history import HISTORY, write_index
from nsa_lib.workbook.keep import FOLDER, keep_run
from nsa_lib.workbook.launch import foretell_fleet
from nsa_lib.workbook.on_trial import foretold_on_trial
from nsa_lib.workbook.profiles import PROLOG
from nsa_lib.workbook.prolog import prolog
from nsa_lib.workbook.questions import QUESTIONS, plan
from nsa_lib.workbook.replay import write_report
from nsa_lib.workbook.run import compare, judged_run

NAMES_OF_A_RUN = "a run folder, the name of one in reports/runs/, newest, or newest:smoke"

ALL = "all"
"""What `run` takes in place of a notebook for the whole checklist."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = Parser(prog="python -m nsa_lib", description="The workbook from a shell.")
    commands = parser.add_subparsers(dest="command", required=True)
    # The others do nothing by themselves: they are for JupyterLab.
    runnable = [name for name, question in QUESTIONS.items() if question.request.cases or question.judging]
    for name, what in (
        ("check", "say what a run would do, or why it cannot; starts nothing"),
        ("run", "execute a notebook and write its report; all: the whole checklist, and one verdict"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("notebook", type=_one_of(*runnable, *([ALL] if name == "run" else [])))
        command.add_argument("-p", "--parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
        command.add_argument(
            "-f", "--parameters_file", type=Path, action="append", default=[], help="flat YAML of parameters"
        )
    command = commands.add_parser("report", help="write the HTML of a run, or of an executed notebook")
    command.add_argument("which", help=f"{NAMES_OF_A_RUN}; or a notebook, out.ipynb")
    command = commands.add_parser("compare", help="print what changed from one run to another")
    command.add_argument("run_a", help=NAMES_OF_A_RUN)
    command.add_argument("run_b", help="the same")
    command.add_argument("-o", "--folder", type=Path, help="where its page is written; the reports folder of RUN_B")
    command = commands.add_parser("keep", help="keep what a run computed, bit by bit, for fingerprint= of later runs")
    command.add_argument("run", help=NAMES_OF_A_RUN)
    command.add_argument("-o", "--folder", type=Path, help=f"where; {FOLDER}/ in the reports folder of RUN")
    commands.add_parser("selftest", help="run every seeded fault through the notebook that must catch it")
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        parser.error(unknown(arguments[0], "command", COMMANDS))
    asked = parser.parse_args(arguments)
    try:
        return COMMANDS[asked.command](asked)
    except (ConfigError, OSError) as error:
        say(_said(error), *getattr(error, "user_traceback", "").splitlines(), to=sys.stderr)
        return 2


class Parser(argparse.ArgumentParser):
    """One whose refusals fit the terminal as its help does."""

    def error(self, message: str) -> NoReturn:
        """Say how the command is used and what is wrong, and exit with status 2."""
        self.print_usage(sys.stderr)
        say(f"{self.prog}: error: {message}", to=sys.stderr)
        self.exit(2)


def _said(error: ConfigError | OSError) -> str:
    """Return an error in one line: of the system's what is wrong with which file."""
    is_of_a_file = isinstance(error, OSError) and error.filename is not None
    return f"{error.filename}: {error.strerror}" if is_of_a_file else str(error)


def _one_of(*notebooks: str) -> Callable[[str], str]:
    """Return what reads the name of a notebook, for a parser."""

    def read(name: str) -> str:
        if name not in notebooks:
            raise argparse.ArgumentTypeError(unknown(name, "notebook", notebooks))
        return name

    return read


def _check(asked: argparse.Namespace) -> int:
    given = _given(asked)
    if QUESTIONS[asked.notebook].request.cases is None:
        say(*FORETOLD[asked.notebook](given))
        return 0
    found = plan(asked.notebook, given)
    print(parameters_table(found.parameter_rows))
    say(f"cases: {', '.join(case.case_id for case in found.cases)}", *foretold_on_trial(found), *found.notices)
    return 0


def _given(asked: argparse.Namespace) -> dict[str, object]:
    """Return what was given to one notebook. Raises ConfigError for a name that it does not know, or a wrong value."""
    given = {**_from_files(asked.parameters_file), **dict(asked.parameters)}
    declared = QUESTIONS[asked.notebook].request.parameters
    refuse_unknown(asked.notebook, declared, given)
    for name, value in given.items():
        read_value(declared, name, value)
    return given


def _from_files(paths: list[Path]) -> dict[str, object]:
    """Return the parameters of YAML files, a later one overruling those before it."""
    read = {}
    for path in paths:
        try:
            content = read_yaml_file(str(path))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
        if content is not None and not isinstance(content, dict):
            raise ConfigError(f"{path}: accepts a flat YAML mapping of parameters")
        read |= content or {}
    return read


def _run(asked: argparse.Namespace) -> int:
    in_files, on_line = _from_files(asked.parameters_file), dict(asked.parameters)
    given = {**in_files, **on_line}
    reports = out_dir_of(given.get("out_dir"))  # beside the index of the runs
    if asked.notebook == ALL:
        return validate(in_files, on_line, reports=reports)
    if given.get("profile") == PROLOG:
        return prolog(asked.notebook, given)
    _given(asked)  # refused here in a line, and not by a kernel in many
    options = [word for path in asked.parameters_file for word in ("-f", str(path))]
    options += papermill.parameters(on_line)
    status, output, is_written = run_notebook(asked.notebook, reports, options, quiet=False)
    if not is_written:
        return status or 1  # papermill has said why
    executed = nbformat.read(output, as_version=4)
    if wants_verdict(executed):
        found = read_verdict(executed)
        say("", f"{found.icon} {found.word}: {found.headline}", *(f"  - {reason}" for reason in found.reasons))
    say(f"report: {output.with_suffix('.html')}")
    return status


def _report(asked: argparse.Namespace) -> int:
    notebook = Path(asked.which)
    if notebook.is_file() or notebook.suffix == ".ipynb":
        path = Path(report_beside(asked.which))
        html, _ = NsaHTMLExporter().from_filename(asked.which)
        write_text(path, html)
    else:
        folder = find(asked.which, reports_folder())
        say(f"making the report of {folder.resolve().name}", to=sys.stderr)  # it takes some seconds
        path = write_report(folder)
        out_dir = folder.resolve().parent.parent
        if (out_dir / HISTORY).exists():
            write_index(out_dir)  # it has a page to link to now
    print(path)
    return 0


def _compare(asked: argparse.Namespace) -> int:
    run_a, run_b = judged_run(asked.run_a), judged_run(asked.run_b)
    print(differences_table(compare(run_a, run_b)), figures_table(run_a, run_b), sep="\n\n")
    folder = asked.folder or reports_of(run_b.folder)
    path = folder / f"compare-{run_a.folder.resolve().name}-{run_b.folder.resolve().name}.html"
    html = comparison_page(run_a, run_b)
    with _elsewhere():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, html)
    say("", f"report: {path}")
    return 0


def _keep(asked: argparse.Namespace) -> int:
    run = judged_run(asked.run)
    with _elsewhere():
        print(*keep_run(run, asked.folder or reports_of(run.folder) / FOLDER), sep="\n")
    return 0


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Say how to name another folder where one cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{_said(error)}; -o FOLDER writes elsewhere") from None


def _selftest(asked: argparse.Namespace) -> int:
    return selftest(reports_folder(), TRIALS)


FORETOLD = {REQUEST.notebook: foretell, FLEET.notebook: foretell_fleet}
"""Of the notebooks that run no case themselves: what they would do."""

COMMANDS = {
    "check": _check, "run": _run, "report": _report, "compare": _compare, "keep": _keep, "selftest": _selftest,
}  # fmt: skip

if __name__ == "__main__":
    if None in (sys.stdout, sys.stderr):  # nothing that is started would have a place to write to
        print("python -m nsa_lib: stdout or stderr is closed; it may be /dev/null", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal may know no sign but ASCII
    sys.exit(main())
