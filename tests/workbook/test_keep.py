"""Only what a sound run computed is kept, and a later run is held against it, from the plan to its verdict."""

import json
from dataclasses import replace

import pytest

from nsa_lib.__main__ import main
from nsa_lib.contract.fingerprint import KEPT
from nsa_lib.judgement.gate import FAIL, PASS
from nsa_lib.runs.fingerprints import keep, read_fingerprint
from nsa_lib.runs.runner import execute
from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.collect import collect
from nsa_lib.workbook.fleet.parameters import NOBODY
from nsa_lib.workbook.keep import keep_run
from nsa_lib.workbook.launch import launch
from nsa_lib.workbook.questions import plan
from nsa_lib.workbook.run import Run, record
from tests.made_runs import Templates, edit
from tests.workbook.smoke.made import healthy, with_case, with_parameter

TINY = {
    "profile": "laptop", "layers": 1, "dim": 32, "heads": 2, "groups": 2, "d_k": 16, "d_v": 16, "seq_len": 128,
    "vocab": 64, "steps": 60, "reserved_limit_mib": 1000.0,
}  # fmt: skip


def ran(folder, **given):
    return record(execute(plan("smoke", {**TINY, "out_dir": str(folder), **given})))


def kept_bits(run):
    return next(gate for gate in run.gates if gate.name == "kept_bits")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run, and the file that keeps its fingerprint."""
    folder = tmp_path_factory.mktemp("first")
    run = ran(folder)
    return run, keep(run.case("training")["fingerprint"], folder / "fingerprints")


def test_a_later_run_agrees_and_carries_what_it_was_compared_with(first, tmp_path):
    _, path = first
    run = ran(tmp_path, fingerprint=str(path.parent), steps=62)
    gate = kept_bits(run)
    assert (gate.outcome, gate.required) == (PASS, True), gate.detail
    assert gate.detail.startswith("60 steps, ")
    assert read_fingerprint(run.folder / KEPT / path.name) == read_fingerprint(path)
    assert not [said for said in run.info["custom"] if "fingerprint" in said], "it changes nothing that is computed"
    (run.folder / KEPT / path.name).unlink()
    assert kept_bits(Run.read(run.folder)).outcome != PASS


def test_one_bit_in_one_step_is_no_go_and_taken_again_up_to_it(first, tmp_path):
    _, path = first
    found = read_fingerprint(path)
    bits = f"{int(found['losses'][29], 16) ^ 1:016x}"
    edited = {**found, "losses": [*found["losses"][:29], bits, *found["losses"][30:]]}
    run = ran(tmp_path, fingerprint=str(keep(edited, tmp_path / "edited")))
    assert (kept_bits(run).outcome, run.verdict) == (FAIL, "NO-GO")
    assert "step 30, loss has other bits" in kept_bits(run).detail
    takes = run.case("hot")["fingerprint"]["again"]
    assert {len(take["losses"]) for take in takes} == {30}
    assert next(gate for gate in run.gates if gate.name == "same_bits").outcome == PASS


def test_of_another_torch_a_run_is_refused_before_any_work(first, tmp_path):
    _, path = first
    found = read_fingerprint(path)
    other = keep({**found, "of": {**found["of"], "torch": "2.5.1"}}, tmp_path / "kept")
    with pytest.raises(ConfigError, match=r"torch .*, kept 2\.5\.1; `python -m nsa_lib keep RUN`"):
        ran(tmp_path, fingerprint=str(other))
    assert not [*(tmp_path / "runs").iterdir()]


def test_the_command_keeps_a_run(first, tmp_path, capsys):
    run, path = first
    assert main(["keep", str(run.folder), "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / path.name}\n"
    assert read_fingerprint(tmp_path / path.name) == read_fingerprint(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda run: with_case(run, "training", status="oom"), "only the bits of a run that is GO"),
        (lambda run: with_parameter(run, "fault", "wrong_bit"), "a seeded fault, wrong_bit"),
        (lambda run: healthy("checklist"), "add in no fixed order"),
    ],
    ids=["no-go", "fault", "unordered"],
)
def test_what_is_no_yardstick_is_not_kept(tmp_path, change, why):
    run = change(healthy("laptop"))
    run = replace(run, info={**run.info, "created": "2025-03-01T10:15:00+00:00"})
    with pytest.raises(ConfigError, match=why):
        keep_run(run, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_of_a_fleet_the_bits_on_which_a_kind_agrees_are_kept_once(tmp_path):
    templates = Templates(tmp_path / "templates")
    for rank in range(2):
        member = {"fleet": "x", "rank": rank, "job": None, "host": "box", "gpu_uuid": None}
        folder = templates.put(tmp_path / "fleets" / "x", "smoke", f"smoke-{rank}", member=member)
    asked = {"launcher": NOBODY, "fleet": "x", "out_dir": str(tmp_path)}
    run = collect(launch({**asked, "expected": "2"}))
    (path,) = keep_run(run, tmp_path / "kept")
    assert len(read_fingerprint(path)["losses"]) == 100
    edit(folder / "cases" / "training" / "fingerprint.json", losses=["other"] * 100)
    with pytest.raises(ConfigError, match="it is NO-GO"):
        keep_run(collect(launch({**asked, "expected": "2"})), tmp_path / "kept")
    assert json.loads(path.read_text())["losses"][0] != "other"
