"""Readiness over made-up runs whose verdict is known: which count, what does not, and the one verdict over them."""

import json
import re
import shlex
import shutil
import zipfile
from dataclasses import replace
from datetime import datetime, timezone
from urllib.parse import unquote

import pytest

from nsa_lib.contract.heartbeat import SCHEMA
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, verdict
from nsa_lib.judgement.identity import FACTS, MAY_DIFFER, disagreements
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook import decide as decisions
from nsa_lib.workbook.decide import NEWEST, choose, decide, source_of
from nsa_lib.workbook.questions import QUESTIONS, counted
from nsa_lib.workbook.readiness.figures import to_run_table
from nsa_lib.workbook.readiness.gates import (
    readiness_advice,
    readiness_gates,
    readiness_headline,
)
from nsa_lib.workbook.run import judged_run, open_run
from tests.made_runs import (
    MACHINE,
    checklist_smoke,
    cut_smoke,
    day,
    edit,
    noisy_smoke,
    set_fact,
    set_parameter,
    untaught_smoke,
)

NOW = decisions._now

QUICK = ("preflight", "backward_scaling", "smoke")
"""The contrast takes longest to judge; most tests do without."""

PARAMETERS = [name for name in QUESTIONS["smoke"].request.parameters if name not in MAY_DIFFER]


@pytest.fixture(scope="module", autouse=True)
def _today():
    """Let the machine and source of now be those of the made-up runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decisions, "_now", lambda: MACHINE)
        yield


@pytest.fixture
def ask(tmp_path):
    """Decide over the runs in the folder of the test."""
    return lambda **given: decide({"out_dir": str(tmp_path), **given})


@pytest.fixture(scope="module")
def whole(templates, tmp_path_factory):
    """A readiness run over one GO run of each notebook."""
    out_dir = tmp_path_factory.mktemp("whole")
    for notebook in counted():
        templates.put(out_dir, notebook)
    return decide({"out_dir": str(out_dir), "tag": "box"})


def gates_of(run):
    return {gate.name: gate for gate in run.gates}


def with_info(run, **changes):
    return replace(run, info={**run.info, **changes})


def with_source(run, notebook, **changes):
    """Return the evidence of a readiness run that found something else in one of its runs."""
    sources = [{**source, **changes} if source["notebook"] == notebook else source for source in run.info["sources"]]
    return with_info(run, sources=sources)


def judged(evidence):
    return {gate.name: gate for gate in readiness_gates(evidence)}


# The verdict


def test_four_runs_that_are_go_and_of_one_configuration_are_go(whole):
    assert (whole.verdict, whole.summary["reasons"]) == ("GO", [])
    assert {gate.name: gate.outcome for gate in whole.gates} == dict.fromkeys(
        [*counted(), "same_configuration", "current"], PASS
    )
    assert all(gate.required for gate in whole.gates)
    assert [source["notebook"] for source in whole.info["sources"]] == list(counted())
    assert whole.info["profile"] == "laptop"
    assert whole.summary["headline"] == (
        "6 of 6 required gates passed; preflight GO, backward_scaling GO, smoke GO, backend_contrast GO"
    )


def test_a_readiness_run_is_a_run_like_any_other(whole):
    assert whole.folder.name.startswith("readiness-")
    assert whole.folder.name.endswith("-box")
    assert {path.name for path in whole.folder.iterdir()} == {"run.json", "summary.json", "junit.xml", "review.zip"}
    read = open_run(whole.folder)
    assert (read.verdict, read.summary) == ("GO", whole.summary)
    assert (len(read.cases), len(read.steps), read.figures) == (0, 0, {})
    kept = json.loads((whole.folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert {name: kept[name] for name in read.summary} == json.loads(json.dumps(read.summary))
    assert [source["run_id"] for source in kept["sources"]] == [f"{notebook}-1" for notebook in counted()]
    assert kept["left_out"] == []
    assert [gate["name"] for gate in kept["sources"][2]["gates"]][:1] == ["steps"]
    assert datetime.fromisoformat(whole.info["created"]).utcoffset().total_seconds() == 0


def test_the_archive_holds_every_run_and_what_was_decided(whole):
    with zipfile.ZipFile(whole.folder / "review.zip") as archive:
        names = archive.namelist()
        assert json.loads(archive.read("summary.json"))["verdict"] == "GO"
    assert {"run.json", "summary.json", "junit.xml"} <= set(names)
    for notebook in counted():
        assert f"runs/{notebook}-1/run.json" in names


def test_the_command_decides_over_the_same_runs_again(whole):
    words = shlex.split(whole.info["reproduce"])
    given = dict(zip(words[6::3], words[7::3], strict=True))
    chosen, left_out = choose(whole.folder.parent.parent, given["runs"])
    assert [run.folder for run in chosen] == [whole.folder.parent / f"{notebook}-1" for notebook in counted()]
    assert (left_out, given["out_dir"]) == ([], str(whole.folder.parent.parent))


@pytest.mark.parametrize(
    ("make", "word"), [(untaught_smoke, "NO-GO"), (noisy_smoke, "REVIEW"), (cut_smoke, "INCOMPLETE")]
)
def test_one_run_that_is_not_go_decides(put, ask, make, word):
    for notebook in counted():
        put(notebook)
    put("smoke", "smoke-2", make=make, created=day(2))
    run = ask()
    assert run.verdict == word
    assert [gate.name for gate in run.gates if gate.outcome != PASS] == ["smoke"]
    assert run.summary["reasons"][0].startswith("smoke ")
    assert f"smoke {word}" in run.summary["headline"]


def test_a_no_go_outranks_a_missing_notebook_and_a_review_does_not(put, ask):
    put("smoke", make=untaught_smoke)
    assert ask().verdict == "NO-GO"
    put("smoke", "smoke-2", make=noisy_smoke, created=day(2))
    assert ask().verdict == "INCOMPLETE"


def test_a_missing_notebook_is_incomplete_and_named(put, ask):
    for notebook in QUICK:
        put(notebook)
    run = ask()
    assert run.verdict == "INCOMPLETE"
    assert run.summary["reasons"] == ["backend_contrast did not run: no run of backend_contrast"]
    assert run.summary["headline"].endswith("backend_contrast –")


def test_without_any_run_nothing_is_decided(ask, tmp_path):
    run = ask()
    assert (run.verdict, run.info["profile"], run.info["sources"]) == ("INCOMPLETE", "", [])
    assert set(gates_of(run)) == {*counted(), "same_configuration", "current"}
    assert {gate.outcome for gate in run.gates} == {NOT_RUN}
    assert ask(runs="").verdict == "INCOMPLETE"


# The gates, each of them in every way


@pytest.mark.parametrize("notebook", counted())
@pytest.mark.parametrize(
    ("said", "outcome", "word"),
    [("GO", PASS, "GO"), ("REVIEW", WARN, "REVIEW"), ("NO-GO", FAIL, "NO-GO"), ("INCOMPLETE", NOT_RUN, "INCOMPLETE")],
)
def test_a_notebook_is_judged_by_the_verdict_of_its_run(whole, notebook, said, outcome, word):
    gates = judged(with_source(whole, notebook, verdict=said, headline="planted"))
    assert (gates[notebook].outcome, gates[notebook].measured) == (outcome, said)
    assert gates[notebook].detail == f"{notebook}-1: planted"
    assert verdict(list(gates.values()))[0] == word
    assert {name for name, gate in gates.items() if gate.outcome != PASS} == ({notebook} if said != "GO" else set())


@pytest.mark.parametrize("notebook", counted())
def test_a_notebook_without_a_run_did_not_run(whole, notebook):
    left = with_info(whole, sources=[one for one in whole.info["sources"] if one["notebook"] != notebook])
    gates = judged(left)
    assert (gates[notebook].outcome, gates[notebook].measured) == (NOT_RUN, None)
    assert verdict(list(gates.values()))[0] == "INCOMPLETE"
    assert f"{notebook} –" in readiness_headline(left)


@pytest.mark.parametrize("name", [*PARAMETERS, *FACTS])
@pytest.mark.parametrize("notebook", ["preflight", "backend_contrast"])
def test_runs_that_differ_do_not_belong_together(whole, name, notebook):
    source = next(one for one in whole.info["sources"] if one["notebook"] == notebook)
    gates = judged(with_source(whole, notebook, configuration={**source["configuration"], name: "other"}))
    gate = gates["same_configuration"]
    assert (gate.outcome, gate.measured, gate.required) == (NOT_RUN, 1, True)
    assert gate.detail.startswith(f"{name}: ")
    assert f"{notebook} other" in gate.detail
    assert verdict(list(gates.values()))[0] == "INCOMPLETE"


def test_one_run_alone_is_held_against_nothing(whole):
    gate = judged(with_info(whole, sources=whole.info["sources"][:1]))["same_configuration"]
    assert (gate.outcome, gate.required) == (NOT_RUN, True)


def test_every_difference_is_named_and_a_hash_is_shortened(whole):
    source = next(one for one in whole.info["sources"] if one["notebook"] == "smoke")
    other = {**source["configuration"], "dim": 64, "source_sha256": "b" * 64}
    gate = judged(with_source(whole, "smoke", configuration=other))["same_configuration"]
    assert gate.measured == 2
    dim, source = gate.detail.split("; ")
    assert dim == "dim: preflight 128, backward_scaling 128, smoke 64, backend_contrast 128"
    assert f"smoke {'b' * 12}," in source
    assert "b" * 13 not in source


def test_a_number_is_no_text_and_a_missing_fact_is_a_difference():
    found = {"preflight": {"dim": 1, "gpu": "x"}, "smoke": {"dim": "1", "gpu": None}, "backend_contrast": {"gpu": "x"}}
    differences = {
        "dim": {"preflight": 1, "smoke": "1"},
        "gpu": {"preflight": "x", "smoke": None, "backend_contrast": "x"},
    }
    assert disagreements(found) == differences


# Runs that do not belong together


OTHER = {"dtype": "float64", "device": "cuda", "torch": "2.4.0", "gpu": "NVIDIA H200", "source_sha256": "c" * 64}


@pytest.mark.parametrize("name", [name for name in (*PARAMETERS, *FACTS) if name not in ("profile", "data", "compile")])
def test_a_difference_is_read_from_the_runs_themselves(put, whole, name):
    put("preflight")
    folder, other = put("smoke"), OTHER.get(name, 7)
    (set_fact if name in FACTS else set_parameter)(folder, name, other)
    runs = [judged_run(folder.parent / name) for name in ("preflight-1", "smoke-1")]
    evidence = with_info(whole, sources=[source_of(run) for run in runs])
    gate = judged(evidence)["same_configuration"]
    assert (gate.outcome, gate.measured) == (NOT_RUN, 1)
    assert gate.detail.startswith(f"{name}: preflight ")
    assert gate.detail.endswith(f"smoke {str(other)[:12]}")


def test_a_parameter_that_nobody_listed_must_be_the_same():
    assert set(MAY_DIFFER) <= {name for question in QUESTIONS.values() for name in question.request.parameters}
    assert {"lr", "seed", "alloc_conf", "device_budget_gib", "backend", "data", "compile", "phi", "batch"} <= {
        *PARAMETERS
    }


def test_a_run_whose_parameters_were_edited_does_not_count(put, ask):
    for notebook in counted():
        folder = put(notebook)
    set_parameter(folder, "vocab", 513)
    run = ask()
    assert run.verdict == "INCOMPLETE"
    (left_out,) = run.info["left_out"]
    assert (left_out["kind"], left_out["reason"]) == ("custom", "custom: vocab=513 (laptop: 512)")


def test_runs_of_two_profiles_give_no_profile(put, ask):
    put("preflight")
    put("smoke", make=checklist_smoke)
    run = ask()
    assert [source["verdict"] for source in run.info["sources"]] == ["GO", "GO"]
    assert (run.info["profile"], gates_of(run)["same_configuration"].outcome) == ("", NOT_RUN)


# Which runs count


def test_the_newest_run_of_a_notebook_counts(put, ask):
    put("smoke", "z", make=untaught_smoke, created=day(1))
    put("smoke", "a", created=day(3))
    put("smoke", "m", make=untaught_smoke, created="2025-03-03T11:00:00+02:00")  # 75 minutes before that, in UTC
    run = ask()
    assert [source["run_id"] for source in run.info["sources"]] == ["a"]
    assert (gates_of(run)["smoke"].outcome, run.info["left_out"]) == (PASS, [])


@pytest.mark.parametrize("custom", ["steps=59 (laptop: 100)", "fault=leak: a seeded fault"])
def test_a_custom_run_and_one_with_a_seeded_fault_are_left_out_and_an_older_one_counts(put, ask, custom):
    put("smoke", "old", created=day(1))
    put("smoke", "new", make=untaught_smoke, created=day(2), custom=[custom])
    run = ask()
    assert [source["run_id"] for source in run.info["sources"]] == ["old"]
    (left_out,) = run.info["left_out"]
    assert left_out == {"run_id": "new", "notebook": "smoke", "kind": "custom", "reason": f"custom: {custom}"}


def test_a_custom_run_does_not_count_either_where_it_is_named_or_alone(put, ask):
    put("smoke", custom=["dim=64 (laptop: 128)"])
    for asked in (NEWEST, "smoke-1"):
        run = ask(runs=asked)
        gate = gates_of(run)["smoke"]
        assert (gate.outcome, run.info["sources"]) == (NOT_RUN, [])
        assert gate.detail == "no run of smoke that counts; smoke-1: custom: dim=64 (laptop: 128)"


def test_other_notebooks_are_nobodys_concern_unless_named(put, ask, tmp_path):
    edit(put("smoke", "r") / "run.json", notebook="readiness")
    put("smoke", "s")
    assert ask().info["left_out"] == []
    (left_out,) = ask(runs="r,s").info["left_out"]
    assert (left_out["run_id"], left_out["kind"]) == ("r", "other")


def test_an_earlier_readiness_run_does_not_count_in_the_next(put, ask):
    put("smoke")
    first = ask()
    second = ask()
    assert first.folder != second.folder
    assert [source["run_id"] for source in second.info["sources"]] == ["smoke-1"]


def end(folder, case_id, status):
    """Change how a case ended; None takes its result away."""
    path = folder / "cases" / case_id / "result.json"
    edit(path, status=status, reason="stopped by the user") if status else path.unlink()


def test_a_stopped_run_does_not_displace_an_older_go_and_is_told(put, ask):
    put("smoke")
    end(put("smoke", "smoke-2", created=day(2)), "anomaly", "interrupted")
    put("smoke", "smoke-3", created=day(3), custom=["dim=64"])
    run = ask()
    assert [source["run_id"] for source in run.info["sources"]] == ["smoke-1"]
    assert [one["kind"] for one in run.info["left_out"]] == ["custom", "stopped"]
    gate = next(gate for gate in run.gates if gate.name == "smoke")
    assert gate.outcome == PASS
    newer = (
        "newer and left out: smoke-3 (custom: dim=64), smoke-2 (stopped before its end, and nothing failed until then)"
    )
    assert gate.detail.endswith(newer)


def test_a_stopped_run_that_had_failed_until_then_counts(put, ask):
    put("smoke")
    end(put("smoke", "smoke-2", created=day(2), make=untaught_smoke), "anomaly", "interrupted")
    run = ask()
    assert [source["verdict"] for source in run.info["sources"]] == ["NO-GO"]


def test_a_killed_run_counts_and_says_before_what_it_stands(put, ask):
    put("smoke")
    end(put("smoke", "smoke-2", created=day(2)), "anomaly", None)
    run = ask()
    gate = next(gate for gate in run.gates if gate.name == "smoke")
    assert (gate.outcome, gate.measured) == (NOT_RUN, "INCOMPLETE")
    assert gate.detail.endswith("older and left out: smoke-1; name one in `runs` to count it")
    assert ask(runs="smoke-1").info["sources"][0]["verdict"] == "GO"


@pytest.mark.parametrize("make", [untaught_smoke, noisy_smoke])
def test_a_run_of_the_future_does_not_win_and_hides_none(put, ask, make):
    put("smoke", "honest", make=make, created=day(2))
    put("smoke", "future", created="2099-03-01T00:00:00+00:00")
    run = ask()
    assert (run.info["sources"], gates_of(run)["smoke"].outcome) == ([], NOT_RUN)
    assert "it is dated in the future, 2099-03-01" in gates_of(run)["smoke"].detail
    put("smoke", "again", make=make, created=datetime.now(timezone.utc).isoformat())
    assert [source["run_id"] for source in ask().info["sources"]] == ["again"]


# Runs that are named


def test_runs_are_named_by_name_path_glob_and_list(put, tmp_path, monkeypatch):
    for notebook in QUICK:
        put(notebook)
    put("smoke", "smoke-2", created=day(2))

    def ids(asked):
        return [run.folder.name for run in choose(tmp_path, asked)[0]]

    assert ids("smoke-1") == ["smoke-1"]
    assert ids("smoke-1, preflight-1,") == ["preflight-1", "smoke-1"]
    assert ids("smoke-*") == ["smoke-2"]
    assert ids("*-1") == ["preflight-1", "backward_scaling-1", "smoke-1"]
    assert ids(str(tmp_path / "runs" / "smoke-1")) == ["smoke-1"]
    assert ids(str(tmp_path / "r*" / "smoke-?")) == ["smoke-2"]
    monkeypatch.chdir(tmp_path / "runs" / "smoke-1")
    assert ids("../smoke-2") == ["smoke-2"]
    assert ids("smoke-1,smoke-1") == ["smoke-1"]


def test_of_several_named_the_newest_counts_and_the_others_are_told(put, ask):
    put("smoke", "smoke-2", created=day(2))
    put("smoke", "smoke-1", created=day(1))
    run = ask(runs="smoke-1,smoke-2")
    assert [source["run_id"] for source in run.info["sources"]] == ["smoke-2"]
    (left_out,) = run.info["left_out"]
    assert (left_out["kind"], left_out["reason"]) == ("older", "older than smoke-2")


@pytest.mark.parametrize("name", ["smoke-9", "smoke-[9]*", "smoke-1,no", "/no/such", "/no/*", "a**b", "a\0b"])
def test_a_name_that_no_run_has_is_refused_in_one_line_and_leaves_nothing(put, ask, tmp_path, name):
    put("smoke")
    with pytest.raises(ConfigError) as refusal:
        ask(runs=name)
    assert str(refusal.value).startswith(f"runs={name.split(',')[-1]!r}: no such run in {tmp_path / 'runs'}")
    assert "\n" not in str(refusal.value)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["smoke-1"]


@pytest.mark.parametrize(
    ("given", "line"),
    [({"runs": 3}, "runs=3: accepts text"), ({"tag": "a/b"}, "tag='a/b'"), ({"out_dir": "/proc/x"}, "out_dir=/proc/x")],
)
def test_a_parameter_that_is_not_accepted_is_refused(ask, given, line):
    with pytest.raises(ConfigError, match=f"^{line}"):
        ask(**given)


# Runs that cannot be read


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def newer_result(folder):
    edit(folder / "cases" / "anomaly" / "result.json", schema=SCHEMA + 1)


def torn_result(folder):
    (folder / "cases" / "anomaly" / "result.json").write_text('{"schema": 1, "sta')


def broken_heartbeat(folder):
    (folder / "cases" / "training" / "heartbeat.jsonl").write_text("half a li\nne\n")


BROKEN = {
    "torn": write("run.json", '{"schema": 1, "run_'),
    "empty": write("run.json", ""),
    "a list": write("run.json", "[]"),
    "bytes": lambda folder: (folder / "run.json").write_bytes(b"\xff\xfe\x00"),
    "newer": lambda folder: edit(folder / "run.json", schema=SCHEMA + 1),
    "older": lambda folder: edit(folder / "run.json", schema=1),
    "no run.json": lambda folder: (folder / "run.json").unlink(),
    "no date": lambda folder: edit(folder / "run.json", created="yesterday"),
    "no cases": lambda folder: edit(folder / "run.json", case_ids=None),
    "no parameters": lambda folder: edit(folder / "run.json", parameters=[]),
    "half a parameter": lambda folder: edit(
        folder / "run.json", parameters=[*open_run(folder).info["parameters"], {"name": "x"}]
    ),
    "no environment": lambda folder: edit(folder / "run.json", environment=[]),
    "result newer": newer_result,
    "result torn": torn_result,
    "heartbeat broken": broken_heartbeat,
    "result of bytes": lambda folder: (folder / "cases" / "anomaly" / "result.json").write_bytes(b"\x00\xff,\n\xfe"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_newest_run_that_cannot_be_read_is_told_and_no_older_one_counts(put, ask, how):
    put("smoke", "smoke-1", created=day(1))
    broken = put("smoke", "smoke-2", created=day(2))
    BROKEN[how](broken)
    run = ask()
    assert run.verdict == "INCOMPLETE"
    assert run.info["sources"] == []
    (left_out,) = run.info["left_out"]
    assert (left_out["run_id"], left_out["notebook"], left_out["kind"]) == ("smoke-2", "smoke", "unreadable")
    assert str(broken) in left_out["reason"]
    assert "\n" not in left_out["reason"]
    gate = gates_of(run)["smoke"]
    assert (gate.outcome, gate.detail) == (NOT_RUN, f"no run of smoke that counts; smoke-2: {left_out['reason']}")


def test_an_older_run_that_cannot_be_read_is_in_nobodys_way(put, ask):
    newer = put("smoke", "smoke-1", created=day(1))
    edit(newer / "run.json", schema=SCHEMA + 1, created=day(1))
    put("smoke", "smoke-2", created=day(2))
    run = ask()
    assert (gates_of(run)["smoke"].outcome, run.info["left_out"]) == (PASS, [])


def test_a_broken_folder_of_no_known_notebook_is_told(put, ask, tmp_path):
    put("smoke")
    (tmp_path / "runs" / "just-made").mkdir()
    (tmp_path / "runs" / "a-file").write_text("no folder")
    run = ask()
    (left_out,) = run.info["left_out"]
    assert (left_out["run_id"], left_out["notebook"], left_out["kind"]) == ("just-made", "unknown", "unreadable")
    assert gates_of(run)["smoke"].outcome == PASS


def test_a_torn_last_heartbeat_is_read_and_judged_by_what_is_whole(put, ask):
    folder = put("smoke")
    heartbeat = folder / "cases" / "training" / "heartbeat.jsonl"
    heartbeat.write_text(heartbeat.read_text()[:-40])
    run = ask()
    (source,) = run.info["sources"]
    assert (source["verdict"], run.verdict, run.info["left_out"]) == ("NO-GO", "NO-GO", [])
    assert "99" in source["reasons"][0]


def test_a_run_killed_at_once_is_incomplete_without_a_traceback(put, ask):
    folder = put("smoke")
    shutil.rmtree(folder / "cases")
    (source,) = ask().info["sources"]
    assert source["verdict"] == "INCOMPLETE"


def test_an_edited_summary_changes_nothing(put, ask):
    folder = put("smoke", make=untaught_smoke)
    edit(folder / "summary.json", verdict="GO", reasons=[], gates=[], headline="all is well")
    run = ask()
    assert run.verdict == "NO-GO"
    assert "all is well" not in run.info
    edit(run.folder / "summary.json", verdict="GO")
    assert open_run(run.folder).verdict == "NO-GO"


@pytest.mark.parametrize("report", [7, "/etc/hostname", "gone.html", None])
def test_only_a_report_goes_into_the_archive(put, ask, report):
    put("smoke", report=report)
    with zipfile.ZipFile(ask().folder / "review.zip") as archive:
        assert not [name for name in archive.namelist() if name.startswith("reports/")]


def test_the_archive_holds_the_readiness_report_and_its_links_lead_to_reports_within(put, ask, tmp_path):
    elsewhere = tmp_path / "else where" / "out.html"
    elsewhere.parent.mkdir()
    elsewhere.write_text("of the smoke")
    put("smoke", report=str(elsewhere))
    own = put("preflight") / "report.html"
    own.write_text("of the preflight")
    with zipfile.ZipFile(ask().folder / "review.zip") as archive:
        page = archive.read("readiness.html").decode()
        links = [unquote(link) for link in re.findall(r'href="([^"#][^"]*)"', page)]
        assert set(links) == {"reports/smoke-1.html", "reports/preflight-1.html"}
        assert archive.read("reports/smoke-1.html") == b"of the smoke"
        assert archive.read("reports/preflight-1.html") == b"of the preflight"
    assert "<title>INCOMPLETE: readiness-" in page


# Advice


# Runs of another day


@pytest.mark.parametrize("name", FACTS)
def test_a_run_of_other_code_or_of_another_machine_than_now_is_stale(whole, name):
    gates = judged(with_info(whole, environment={**MACHINE, name: "f" * 64}))
    assert (gates["current"].outcome, gates["current"].measured, gates["current"].required) == (NOT_RUN, 4, True)
    all_of_them = ", ".join(counted())
    assert gates["current"].detail == f"{all_of_them}: {name} {str(MACHINE.get(name))[:12]}, now {'f' * 12}"
    assert verdict(list(gates.values()))[0] == "INCOMPLETE"


def test_it_is_said_what_to_run_again_and_how(put, ask, tmp_path):
    for notebook in counted()[1:]:
        put(notebook)
    set_fact(put("smoke", "smoke-2", created=day(2)), "source_sha256", "b" * 64)
    run = ask()
    assert gates_of(run)["current"].detail == f"smoke: source_sha256 {'b' * 12}, now {'a' * 12}"
    table = to_run_table(run)._repr_html_()
    command = "papermill notebooks/preflight.ipynb out.ipynb --engine nsa -r profile laptop"
    assert f"{command} -r out_dir {tmp_path}" in table
    assert "no run of preflight" in table
    assert run.info["sources"][1]["reproduce"] in table
    assert [line.split(" again: ")[0] for line in readiness_advice(run)] == ["Run preflight", "Run smoke"]


def test_nothing_is_to_be_run_again_after_a_go(whole):
    assert readiness_advice(whole) == []
    assert str(to_run_table(whole)) == "To be run: nothing"


def test_without_runs_nothing_is_of_today(whole):
    gate = judged(with_info(whole, sources=[]))["current"]
    assert (gate.outcome, gate.detail) == (NOT_RUN, "no run that counts")


def test_where_torch_cannot_be_used_every_run_is_stale_and_a_verdict_is_there(monkeypatch):
    def no_torch():
        raise ConfigError("torch: cannot be used")

    monkeypatch.setattr(decisions.environment, "torch_facts", no_torch)
    now = NOW()
    assert now["torch_problem"] == "torch: cannot be used"
    assert "torch" not in now
    assert now["source_sha256"]
