"""The commands of the shell: what they print, their exit status, and refusals in one line."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from nsa_lib import __main__ as worker_main
from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.report import NsaHTMLExporter
from nsa_lib.runs import environment
from nsa_lib.workbook.run import record
from tests.made import save, with_schema
from tests.samples import sample_notebook
from tests.workbook.smoke.made import healthy, with_steps

FACTS = {"torch": "2.13.0", "cuda_usable": False, "cuda_problem": "torch 2.13.0 is a build without CUDA"}


@pytest.fixture
def ask(monkeypatch, tmp_path, capsys):
    """Run a command on a machine without a GPU; its exit status and what it printed."""

    def asked(*arguments):
        monkeypatch.setattr(environment, "torch_facts", lambda: FACTS)
        monkeypatch.setattr(environment, "has_nvidia_device", lambda: False)
        status = worker_main.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return asked


def test_modules_in_the_working_folder_do_not_take_the_place_of_pythons_own(tmp_path):
    for module in ("profile", "random", "torch", "json"):
        (tmp_path / f"{module}.py").write_text(f"raise SystemExit('{module} of the user')")
    for command in (["nsa_lib", "check", "smoke"], ["nsa_lib.runs.papermill", str(os.getpid()), "none.ipynb", "out"]):
        ran = subprocess.run(
            [sys.executable, "-m", *command, "-p", "profile", "nope"], cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert "of the user" not in ran.stderr
        assert ran.returncode in (1, 2)
    assert "none.ipynb" in ran.stderr


# check


def test_check_says_what_a_run_would_do_and_starts_nothing(ask, tmp_path):
    status, out, err = ask("check", "smoke", "-p", "steps", "59", "-p", "backend", "packed", "-p", "out_dir", tmp_path)
    assert (status, err) == (0, "")
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert rows["steps"][1:4] == ["59", "given", "100"]
    assert rows["backend"][1:3] == ["packed", "given"]
    assert rows["dim"][1:4] == ["128", "profile", "768"]
    assert "cases: training, hot, anomaly" in out
    assert "at least 60 steps" in out
    assert not any((tmp_path / "runs").iterdir())


def test_check_reads_a_file_of_parameters_which_the_command_line_overrules(ask, tmp_path):
    (tmp_path / "p.yaml").write_text(f"steps: 80\nanomaly: false\nseed: 3\nout_dir: {tmp_path}\n")
    status, out, _ = ask("check", "smoke", "-f", tmp_path / "p.yaml", "-p", "seed", "4")
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert (status, rows["steps"][1], rows["seed"][1]) == (0, "80", "4")
    assert "cases: training, hot\n" in out
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert ask("check", "smoke", "-f", tmp_path / "empty.yaml", "-p", "out_dir", tmp_path)[0] == 0


def test_of_two_files_the_later_overrules(ask, tmp_path):
    (tmp_path / "a.yaml").write_text(f"steps: 80\nseed: 3\nout_dir: {tmp_path}\n")
    (tmp_path / "b.yaml").write_text("steps: 90\n")
    status, out, _ = ask("check", "smoke", "-f", tmp_path / "a.yaml", "-f", tmp_path / "b.yaml")
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert (status, rows["steps"][1], rows["seed"][1]) == (0, "90", "3")
    (tmp_path / "list.yaml").write_text("[1]\n")
    status, _, err = ask("check", "smoke", "-f", tmp_path / "list.yaml")
    assert (status, err) == (2, f"{tmp_path / 'list.yaml'}: accepts a flat YAML mapping of parameters\n")


def test_check_of_readiness_says_which_runs_count_and_makes_none(ask, tmp_path):
    record(save(healthy("laptop"), tmp_path / "runs" / "smoke-1"))
    record(save(healthy("laptop"), tmp_path / "runs" / "smoke-2", custom=["dim=64"], created="2026-01-01T00:00:00Z"))
    status, out, err = ask("check", "readiness", "-p", "out_dir", tmp_path)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "counts: smoke-1, GO",
        "left out: smoke-2, custom: dim=64",
        "missing: preflight, backward_scaling, backend_contrast",
    ]
    assert len([*(tmp_path / "runs").iterdir()]) == 2
    status, out, err = ask("check", "readiness", "-p", "out_dir", tmp_path, "-p", "runs", "smoke-9")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("runs='smoke-9': no such run in")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("stepz", "100", "stepz: no such parameter of smoke; did you mean steps? It accepts profile, steps"),
        ("seq-len", "512", "seq-len: no such parameter of smoke; did you mean seq_len? It accepts profile, steps"),
        ("steps", "ten", "steps='ten': accepts a whole number above 0"),
        ("backend", "fast", "backend='fast': no built-in of this name and no entry point"),
        ("groups", "3", "heads=4, groups=3: heads must be a multiple of groups"),
        ("profile", "checklist", "profile=checklist: needs a CUDA device"),
        ("data", "/no/such/file", "data=/no/such/file: no such file"),
        ("out_dir", "/proc/here", "out_dir=/proc/here: cannot be made"),
    ],
)
def test_check_refuses_what_cannot_run_in_one_line(ask, tmp_path, name, value, line):
    status, out, err = ask("check", "smoke", "-p", "out_dir", tmp_path, "-p", name, value)
    assert (status, out) == (2, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_file_that_is_missing_is_named(ask):
    for command in (("check", "smoke", "-f", "/no/p.yaml"), ("report", "/no/out.ipynb"), ("compare", "/no/a", "/no/b")):
        status, out, err = ask(*command)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert command[-1 if command[0] != "compare" else 1] in err


def test_a_refusal_reaches_the_shell_without_a_traceback():
    command = [sys.executable, "-m", "nsa_lib", "check", "smoke", "-p", "stepz", "3"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("stepz: no such parameter")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["check"], ["check", "out.ipynb"], ["run", "smoke", "-p", "steps"]])
def test_a_command_that_is_no_command_is_refused(arguments):
    with pytest.raises(SystemExit) as refusal:
        worker_main.main(arguments)
    assert refusal.value.code == 2


# run


@pytest.mark.parametrize(("verdict", "status"), [("GO", 0), ("NO-GO", 1)])
def test_run_hands_every_value_to_papermill_as_text_and_prints_the_verdict(ask, tmp_path, monkeypatch, verdict, status):
    commands = []

    def papermill(command, stop, **_):
        commands.append(command)
        nbformat.write(sample_notebook(verdict, reasons=["because"] * status), command[5])
        return status, False

    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    (tmp_path / "reports").mkdir()
    monkeypatch.setattr(worker_main.papermill, "supervise", papermill)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("layers: 2")
    given = str(tmp_path / "p.yaml")
    ended, out, _ = ask("run", "smoke", "-f", given, "-p", "tag", "007", "-p", "steps", "60")
    (command,) = commands
    source, output = command[4:6]
    assert command[:3] == [sys.executable, "-m", "nsa_lib.runs.papermill"]
    assert command[6:9] == ["--engine", "nsa", "--log-output"]
    assert source == str(tmp_path / "notebooks" / "smoke.ipynb")
    assert command[9:] == ["-f", given, "-r", "tag", "007", "-r", "steps", "60"]
    assert ended == status
    assert f"{verdict}: 12 layers trained" in out
    assert ("  - because" in out) == (verdict == "NO-GO")
    assert out.splitlines()[-1] == f"report: {output.removesuffix('.ipynb')}.html"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-p", "stepz", "3"], "stepz: no such parameter of preflight, backward_scaling, smoke"),
        (["-p", "seq_lenz", "[64]"], "seq_lenz: no such parameter of preflight, backward_scaling, smoke"),
        (["-p", "runs", "newest"], "runs: a validation decides over the runs that it makes"),
        (["-f", "/no/p.yaml"], "/no/p.yaml: No such file or directory"),
        (["-p", "out_dir", "/dev/null"], "out_dir=/dev/null: cannot be made (Not a directory); accepts a folder that"),
    ],
)
def test_run_all_refuses_before_anything_starts(ask, tmp_path, monkeypatch, arguments, line):
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    status, out, err = ask("run", "all", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)
    assert "no such parameter" not in line or "did you mean" in err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-p", "stepz", "3"], "stepz: no such parameter of smoke; did you mean steps?"),
        (["-p", "steps", "ten"], "steps='ten': accepts a whole number above 0"),
        (["-f", "p.yaml"], "layerz: no such parameter of smoke; did you mean layers?"),
        (["-p", "out_dir", "/dev/null"], "out_dir=/dev/null: cannot be made (Not a directory); accepts a folder that"),
    ],
)
def test_run_refuses_in_a_line_before_papermill_starts(ask, tmp_path, monkeypatch, arguments, line):
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    monkeypatch.setattr(worker_main.papermill, "supervise", lambda *_: pytest.fail("started"))
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text("layerz: 2")
    status, out, err = ask("run", "smoke", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line)


@pytest.mark.parametrize("in_a_file", [False, True])
@pytest.mark.parametrize("notebook", ["smoke", "all"])
def test_what_a_run_leaves_lies_beside_the_index_of_its_runs(ask, tmp_path, monkeypatch, notebook, in_a_file):
    outputs = []

    def papermill(command, stop, **_):
        outputs.append(Path(command[5]))
        nbformat.write(sample_notebook("GO"), command[5])
        return 0, False

    monkeypatch.setattr(environment, "PROJECT", tmp_path / "project")
    monkeypatch.setattr(worker_main.papermill, "supervise", papermill)
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text("out_dir: mine\n")
    given = ("-f", "p.yaml") if in_a_file else ("-p", "out_dir", "mine")
    status, out, _ = ask("run", notebook, *given)
    assert status == 0
    assert {path.parent for path in outputs} == {tmp_path / "mine"}
    assert f"report: {outputs[-1].with_suffix('.html')}" in out.splitlines()
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(["chek", "smoke"], "check"), (["check", "smoek"], "smoke"), (["run", "preflihgt"], "preflight")],
)
def test_a_misspelt_command_or_notebook_is_answered_by_the_one_it_may_be(capsys, arguments, meant):
    with pytest.raises(SystemExit):
        worker_main.main(arguments)
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_run_all_hands_over_files_in_their_order_and_values_as_text_and_its_status(ask, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(worker_main, "validate", lambda *given, **named: asked.append((given, named)) or 130)
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    (tmp_path / "a.yaml").write_text("steps: 80\nseed: 3\n")
    (tmp_path / "b.yaml").write_text("steps: 90\n")
    files = ("-f", tmp_path / "a.yaml", "-f", tmp_path / "b.yaml")
    assert ask("run", "all", *files, "-p", "tag", "007")[0] == 130
    assert asked == [(({"steps": 90, "seed": 3}, {"tag": "007"}), {"reports": tmp_path / "reports"})]


@pytest.mark.parametrize("content", [b"steps: [", b"steps: \xff\xfe"])
def test_a_file_that_is_no_yaml_is_refused_in_one_line(ask, tmp_path, content):
    (tmp_path / "bad.yaml").write_bytes(content)
    status, out, err = ask("run", "smoke", "-f", tmp_path / "bad.yaml")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"{tmp_path / 'bad.yaml'}: no YAML: ")


def test_a_closed_stdout_is_refused_in_one_line():
    shell = f"exec >&-; exec {shlex.quote(sys.executable)} -m nsa_lib check smoke"
    ended = subprocess.run(["sh", "-c", shell], stderr=subprocess.PIPE, text=True, check=False)
    said = "python -m nsa_lib: stdout or stderr is closed; it may be /dev/null\n"
    assert (ended.returncode, ended.stderr) == (2, said)


# report


def test_report_writes_the_html_of_an_executed_notebook_beside_it(ask, tmp_path):
    nbformat.write(sample_notebook("REVIEW"), tmp_path / "out.ipynb")
    status, out, _ = ask("report", tmp_path / "out.ipynb")
    assert (status, out.splitlines()[-1]) == (0, str(tmp_path / "out.html"))
    html = (tmp_path / "out.html").read_bytes()
    assert b"REVIEW" in html
    assert html == NsaHTMLExporter().from_filename(str(tmp_path / "out.ipynb"))[0].encode()


# compare


def test_compare_prints_what_changed_from_one_run_to_another_and_writes_a_page(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "PROJECT", tmp_path / "project")
    (tmp_path / "project").mkdir()
    record(save(healthy("laptop"), tmp_path / "a", run_id="before"))
    save(with_steps(healthy("laptop", seed=5), loss=lambda step, loss: 6.0), tmp_path / "b", run_id="after")
    status, out, _ = ask("compare", tmp_path / "a", tmp_path / "b")
    changed, figures, where = out.split("\n\n")
    counted, header, *rows = [line.split() for line in changed.splitlines()]
    assert (status, counted) == (0, ["4", "differences"])
    assert header == ["kind", "name", "before", "after"]
    assert rows[0] == ["parameter", "seed", "0", "5"]
    assert rows[1][:3] == ["gate", "loss_falls", "PASS"]
    assert [row[:2] for row in rows[2:]] == [["verdict", "GO"], ["figure", "loss"]]
    assert figures.splitlines()[2].split() == ["peak", "allocated", "34", "MiB", "34", "MiB", "+0.0", "%"]
    assert len(figures.splitlines()) == 8  # one of the six takes two lines
    page = tmp_path / "project" / "reports" / "compare-a-b.html"
    assert where == f"report: {page}\n"
    assert "before against after" in page.read_text()
    status, out, _ = ask("compare", tmp_path / "a", tmp_path / "a")
    assert (status, out.splitlines()[0]) == (0, "Nothing differs")
    assert page.with_name("compare-a-a.html").exists()


def test_a_page_that_cannot_be_written_is_named_in_a_line_after_what_was_found(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "PROJECT", tmp_path)
    save(healthy("laptop"), tmp_path / "a")
    nbformat.write(sample_notebook("GO"), tmp_path / "out.ipynb")
    for page in ("out.html", "reports/compare-a-a.html"):
        (tmp_path / page).mkdir(parents=True)
    elsewhere = "; -o FOLDER writes elsewhere"
    for command, found, page, hint in (
        (("compare", tmp_path / "a", tmp_path / "a"), "Nothing differs", "reports/compare-a-a.html", elsewhere),
        (("report", tmp_path / "out.ipynb"), "", "out.html", ""),
    ):
        status, out, err = ask(*command)
        assert (status, err) == (2, f"{tmp_path / page}: Is a directory{hint}\n")
        assert out.startswith(found)


def test_a_comparison_is_written_where_the_second_run_lies_or_where_it_is_asked_for(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "PROJECT", tmp_path / "project")
    for name in ("a", "b"):
        save(healthy("laptop"), tmp_path / "out_dir" / "runs" / name)
    runs = [tmp_path / "out_dir" / "runs" / name for name in ("a", "b")]
    page = "compare-a-b.html"
    for options, where in (((), tmp_path / "out_dir"), (("-o", tmp_path / "x y"), tmp_path / "x y")):
        status, out, _ = ask("compare", *runs, *options)
        assert (status, out.splitlines()[-1]) == (0, f"report: {where / page}")
        assert (where / page).is_file()
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize(("options", "where"), [((), "out_dir/fingerprints"), (("-o", "mine"), "mine")])
def test_bits_are_kept_where_the_run_lies_or_where_it_is_asked_for(ask, tmp_path, monkeypatch, options, where):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(worker_main, "keep_run", lambda run, folder: asked.append(folder) or [folder / "bits.json"])
    save(healthy("laptop"), tmp_path / "out_dir" / "runs" / "a")
    assert ask("keep", tmp_path / "out_dir" / "runs" / "a", *options)[0] == 0
    assert [folder.resolve() for folder in asked] == [tmp_path / where]


@pytest.mark.parametrize(
    ("schema", "said"), [(SCHEMA + 1, f"schema {SCHEMA + 1} is newer"), (1, "recorded by an older nsa_lib (schema 1")]
)
@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_run_of_another_library_is_refused_in_one_line(ask, tmp_path, schema, said, command):
    for name in ("a", "b"):
        save(healthy("laptop"), tmp_path / name)
    with_schema(tmp_path / "b" / "run.json", schema)
    first = [tmp_path / "a"] if command == "compare" else []
    status, out, err = ask(command, *first, tmp_path / "b")
    *begun, line = err.splitlines()
    assert (status, out, begun) == (2, "", [] if command == "compare" else ["making the report of b"])
    assert line.startswith(f"{tmp_path / 'b' / 'run.json'}: {said}")
