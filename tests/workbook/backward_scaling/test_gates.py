"""Backward scaling: exponents against planted ones, each gate passing, failing and not running, cases, charts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from nsa_lib.contract.allocator import ALLOCATOR_SETTINGS
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, verdict
from nsa_lib.workbook.backward_scaling import measures
from nsa_lib.workbook.backward_scaling.cases import scaling_cases
from nsa_lib.workbook.backward_scaling.figures import peak_against_layers, scaling_figures
from nsa_lib.workbook.backward_scaling.gates import (
    KNOWN_PEAK_ALLOC_MIB,
    scaling_advice,
    scaling_gates,
    scaling_headline,
)
from nsa_lib.workbook.profiles import CHECKLIST_ALLOC_CONF
from tests.made import made, resolved, with_case

LENGTHS = (128, 512, 1024, 2048)

STATE_MIB = 400.0


def beats(case_id, count, warmup, alloc_mib, reserved_mib, total_ms):
    """Return heartbeats whose time jitters by a percent and whose memory does not move."""
    jitter = np.random.default_rng(len(case_id)).normal(1, 0.01, count)
    return [
        {"case_id": case_id, "step": step, "phase": "warmup" if step <= warmup else "step", "loss": 6.0,
         "grad_norm": 1.0, "step_ms": total_ms, "forward_ms": 0.4 * total_ms * noise,
         "backward_ms": 0.6 * total_ms * noise, "peak_alloc_mib": alloc_mib, "peak_reserved_mib": reserved_mib,
         **{f"peak_{kind}_{phase}_mib": mib for phase in ("forward", "backward", "optimizer")
            for kind, mib in (("alloc", alloc_mib), ("reserved", reserved_mib))}}
        for step, noise in enumerate(jitter, start=1)
    ]  # fmt: skip


def healthy(profile="checklist", exponent=1.0, time_exponent=0.5, **given):
    """Return a scaling that is GO: memory beyond the state is 0.4 MiB a token to the power of the exponent."""
    values = resolved("backward_scaling", given, profile=profile)
    backend = values["backend"].value
    cases, rows = [], []
    for case in scaling_cases(values, ()):
        alloc_mib = STATE_MIB + 0.4 * case.seq_len**exponent
        if case.work == "train":
            alloc_mib = 800 + 60 * case.model.layers
        rows += beats(
            case.case_id, case.steps, case.warmup_steps, alloc_mib, 1.1 * alloc_mib, case.seq_len**time_exponent
        )
        cases.append({"case_id": case.case_id, "status": "ok", "reason": "", "steps_done": case.steps,
                      "state_mib": STATE_MIB, "routes": [backend]})  # fmt: skip
    return made({"notebook": "backward_scaling", "profile": profile}, cases, rows, values)


def known(factor=1.0, profile="checklist", backend="masked", **given):
    """Return a scaling whose peaks are the kept ones, times a factor."""
    run = healthy(profile, backend=backend, **given)
    peaks = {f"s{length}": mib * factor for length, mib in KNOWN_PEAK_ALLOC_MIB[profile, backend].items()}
    steps = run.steps.copy()
    for case_id, mib in peaks.items():
        steps.loc[steps["case_id"] == case_id, "peak_alloc_mib"] = mib
    return replace(run, steps=steps, cases=run.cases.assign(state_mib=1.0))


def without(run, *case_ids):
    return replace(
        run,
        cases=run.cases[~run.cases["case_id"].isin(case_ids)],
        steps=run.steps[~run.steps["case_id"].isin(case_ids)],
    )


def ended(run, case_id, status, steps=None):
    """Return the run with another end of one case, after so many of its steps."""
    cases, rows = run.cases.copy(), run.steps
    cases.loc[cases["case_id"] == case_id, ["status", "reason"]] = [status, "planted"]
    if steps is not None:
        rows = rows[(rows["case_id"] != case_id) | (rows["step"] <= steps)]
    return replace(run, cases=cases, steps=rows)


def gate(run, name):
    (found,) = [gate for gate in scaling_gates(run) if gate.name == name]
    return found


@pytest.mark.parametrize("profile", ["checklist", "laptop"])
@pytest.mark.parametrize("backend", ["masked", "gather", "packed"])
def test_a_healthy_scaling_is_go(profile, backend):
    run = healthy(profile, backend=backend)
    gates = [g for g in scaling_gates(run) if g.name != "known_peak"]
    assert verdict(gates) == ("GO", []), gates
    assert {g.outcome for g in gates} == {PASS}


@pytest.mark.parametrize("planted", [0.5, 1.0, 1.5, 2.0])
def test_the_exponents_are_the_planted_ones(planted):
    rows = measures.exponent_rows(healthy(exponent=planted, time_exponent=planted)).set_index(
        ["quantity", "first", "last"]
    )
    memory = rows.loc["memory"]
    np.testing.assert_allclose(memory["exponent"], planted, atol=1e-9)
    np.testing.assert_allclose(memory["high"] - memory["low"], 0, atol=1e-6)
    time = rows.loc["time"]
    assert ((time["low"] < planted) & (planted < time["high"])).all()
    assert len(rows) == 2 * (len(LENGTHS) - 1 + 1)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng, lengths = np.random.default_rng(1), np.array([64, 128, 256, 512, 1024])
    hits = segments = 0
    for _ in range(2000):
        points = list(zip(lengths, 3 * lengths**1.3 * np.exp(rng.normal(0, 0.05, len(lengths)))))
        _, low, high = measures.overall_exponent(points)
        hits += low < 1.3 < high
        _, low, high = measures.segment_exponent(points[0], points[1], 0.05, 0.05)
        segments += low < 1.3 < high
    assert 0.93 < hits / 2000 < 0.97
    assert 0.93 < segments / 2000 < 0.97


def test_points_that_are_no_power_law_get_a_wide_interval_and_two_points_none():
    _, low, high = measures.overall_exponent([(128, 1), (512, 8.7), (1024, 31), (2048, 53)])
    assert high - low > 1
    with pytest.raises(ValueError, match="an interval needs 3"):
        measures.overall_exponent([(128, 1), (512, 4)])


def test_a_peak_that_moves_from_one_phase_to_another_is_predicted():
    layers = np.array([1, 3, 5])
    peaks = {"forward": 900 + 55 * layers, "backward": 820 + 72 * layers, "optimizer": 700 + 72 * layers}
    rows = pd.DataFrame({"layers": layers, **{f"peak_alloc_{phase}_mib": mib for phase, mib in peaks.items()}})
    assert measures.predicted_peak_mib(rows, 12) == pytest.approx(820 + 72 * 12)
    assert measures.predicted_peak_mib(rows[:1], 12) is None


def test_the_cases_are_the_checklists():
    values = resolved("backward_scaling", {}, profile="checklist")
    cases = {case.case_id: case for case in scaling_cases(values, ())}
    lengths = [cases[f"s{length}"] for length in LENGTHS]
    assert {(c.work, c.model.layers, c.grad_checkpointing, c.steps - c.warmup_steps) for c in lengths} == {
        ("backward", 5, False, 10)
    }
    trains = [cases[f"train_{layers}"] for layers in (1, 3, 5)]
    assert all(c.work == "train" and c.grad_checkpointing and c.seq_len == 2048 for c in trains)
    smokes = [cases[f"smoke_{name}"] for name in ALLOCATOR_SETTINGS]
    assert {c.alloc_conf for c in smokes} == set(ALLOCATOR_SETTINGS.values())
    assert {c.model.layers for c in smokes} == {12}
    # The checklist's own line is the length itself.
    assert "backward_both" not in cases
    assert cases["s2048"].alloc_conf == CHECKLIST_ALLOC_CONF
    assert cases["backward_default"].alloc_conf == ""


@pytest.mark.parametrize("status", ["failed", "oom", "nan", "stalled", "timeout", "crashed"])
def test_a_length_that_does_not_finish_fails(status):
    run = ended(healthy(), "s2048", status, steps=4)
    assert gate(run, "backward_2048").outcome == FAIL
    assert gate(run, "memory_exponent_1024_2048").outcome == NOT_RUN
    assert verdict(scaling_gates(run))[0] == "NO-GO"


@pytest.mark.parametrize("status", ["interrupted", "unavailable"])
def test_a_length_that_could_not_be_measured_did_not_run(status):
    run = ended(healthy(), "s512", status, steps=2)
    assert gate(run, "backward_512").outcome == NOT_RUN
    assert gate(without(healthy(), "s512"), "backward_512").outcome == NOT_RUN
    assert verdict(scaling_gates(run))[0] == "INCOMPLETE"


def test_a_length_with_missing_iterations_fails_and_one_without_memory_did_not_run():
    run = healthy()
    assert gate(replace(run, steps=run.steps[run.steps["step"] != 13]), "backward_2048").outcome == FAIL
    blank = run.steps.assign(peak_reserved_mib=float("nan"))
    assert gate(replace(run, steps=blank), "backward_2048").outcome == NOT_RUN


@pytest.mark.parametrize(("length", "limit"), [(1024, 12_000), (2048, 20_000)])
def test_a_long_length_above_the_checklists_memory_fails(length, limit):
    run = healthy()
    for mib, outcome in ((limit, PASS), (limit + 1, FAIL)):
        steps = run.steps.copy()
        steps.loc[steps["case_id"] == f"s{length}", "peak_reserved_mib"] = float(mib)
        assert gate(replace(run, steps=steps), f"backward_{length}").outcome == outcome


def test_the_train_steps_fail_with_one_that_fails_and_do_not_run_without_one():
    assert gate(ended(healthy(), "train_3", "oom"), "train_steps").outcome == FAIL
    assert gate(ended(healthy(), "train_3", "interrupted"), "train_steps").outcome == NOT_RUN
    assert gate(without(healthy(), "train_5"), "train_steps").outcome == NOT_RUN


def test_another_route_in_one_case_fails_and_an_unseen_one_did_not_run():
    run = healthy(backend="packed")
    assert gate(run, "route").outcome == PASS
    for routes, outcome in ((["gather"], FAIL), ([], FAIL), (None, NOT_RUN)):
        assert gate(with_case(run, "s512", routes=routes), "route").outcome == outcome


@pytest.mark.parametrize(
    ("profile", "backend", "word"),
    [("checklist", "masked", "GO"), ("checklist", "gather", "NO-GO"), ("laptop", "gather", "GO")],
)
def test_memory_that_grows_faster_than_the_length_fails_where_it_is_required(profile, backend, word):
    run = healthy(profile, exponent=1.2, backend=backend)
    first, last = run.parameter("seq_lens")[-2:]
    found = gate(run, f"memory_exponent_{first}_{last}")
    assert (found.outcome, found.required) == (FAIL, word == "NO-GO")
    judged = [g for g in scaling_gates(run) if g.name != "known_peak"]
    assert verdict(judged)[0] == word


@pytest.mark.parametrize(("profile", "backend"), list(KNOWN_PEAK_ALLOC_MIB))
def test_a_peak_far_above_the_kept_one_warns(profile, backend):
    assert gate(known(1.24, profile, backend), "known_peak").outcome == PASS
    run = known(1.26, profile, backend)
    assert gate(run, "known_peak").outcome == WARN
    custom = replace(run, info={**run.info, "custom": ["dim=64"]})
    assert gate(custom, "known_peak").outcome == NOT_RUN
    first = f"s{run.parameter('seq_lens')[0]}"
    assert gate(without(run, first), "known_peak").outcome == NOT_RUN


def test_advice_names_the_setting_that_reserves_too_much_and_says_slow_is_not_hung():
    run = healthy()
    assert "No allocator setting" in scaling_advice(run)[0]
    steps = run.steps.copy()
    steps.loc[steps["case_id"] == "smoke_both", "peak_reserved_mib"] = 75_430.0
    steps.loc[steps["case_id"] == "s2048", "step_ms"] = 93_600.0
    slow, setting, predicted = scaling_advice(replace(run, steps=steps))
    assert slow.startswith("S=2048 is slow, 93.6 s an iteration; it was not hung")
    assert setting.startswith(f"Under {CHECKLIST_ALLOC_CONF} the smoke's train step reserves 75,430 MiB for ")
    assert predicted == "Predicted peak of the smoke with 12 layers: 1,520 MiB allocated."


def test_a_run_without_any_case_is_read_without_a_traceback():
    run = healthy()
    empty = replace(run, cases=run.cases[:0], steps=run.steps[:0])
    assert {g.outcome for g in scaling_gates(empty)} == {NOT_RUN}
    assert scaling_advice(empty) == []
    assert scaling_headline(empty) == "no length was measured"
    for figure in scaling_figures(empty).values():
        assert figure.layout.title.subtitle.text == "no steps recorded"


def test_a_run_cut_short_draws_what_is_there():
    run = without(healthy(), "s2048", "train_5", "smoke_both", "smoke_default")
    figures = scaling_figures(run)
    assert list(figures["time"].data[0].x) == [128, 512, 1024]
    assert len(figures["allocator"].data[0].y) == 5
    assert [t.name for t in figures["layers"].data] == ["highest phase, extrapolated", "train steps"]


def test_the_charts_say_units_and_exponents():
    figures = scaling_figures(healthy(exponent=1.0))
    assert figures["memory"].layout.yaxis.title.text == "MiB"
    assert figures["time"].layout.yaxis.title.text == "ms"
    assert figures["memory"].layout.xaxis.title.text == "sequence length S in tokens"
    assert "exponent 1.00 (1.00 to 1.00, 95 %)" in figures["memory"].layout.title.subtitle.text
    beside = peak_against_layers(measures.layer_rows(healthy()), 12, 1600.0)
    assert "predicted for 12 layers: 1,520 MiB; measured 1,600 MiB, -5.0 % off" in beside.layout.title.subtitle.text
    assert beside.data[-1].name == "the smoke"
