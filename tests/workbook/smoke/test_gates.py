"""The gates of a smoke: each passes, fails and does not run; and its advice."""

from dataclasses import replace

import pandas as pd
import pytest

from nsa_lib.contract.heartbeat import STEP_COLUMNS
from nsa_lib.judgement.attestation import GATES
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, verdict
from nsa_lib.workbook.run import open_run
from nsa_lib.workbook.smoke.gates import smoke_advice, smoke_gates
from tests.made import asked_for, routed, save, with_case
from tests.workbook.smoke.made import (
    INF,
    NAN,
    counted,
    covering,
    ended,
    executed,
    found_wrong,
    healthy,
    kept,
    leaking,
    missing,
    not_compared,
    replayed,
    shown_fresh,
    with_operators,
    with_other_bits,
    with_parameter,
    with_steps,
    without_case,
)


def word(run):
    return verdict(smoke_gates(run))[0]


# Each gate by itself


FAULTS = {
    "steps": lambda run: kept(run, 99),
    "finite": lambda run: with_steps(run, grad_norm=lambda step, norm: NAN if step == 50 else norm),
    "anomaly": lambda run: with_case(run, "anomaly", status="nan", reason="MulBackward0 returned nan values"),
    "loss_falls": lambda run: with_steps(run, loss=lambda step, loss: 6.2),
    "route": lambda run: routed(run, "training", "gather"),
    "attention": lambda run: found_wrong(run, "attention"),
    "choice": lambda run: found_wrong(run, "choice"),
    "gradients": lambda run: found_wrong(run, "backward"),
    "train_step": lambda run: found_wrong(run, "train_step"),
    "blocks": lambda run: found_wrong(run, "blocks"),
    "unrecorded": lambda run: replayed(run, wrong={"step 23": "another loss"}),
    "same_bits": lambda run: with_other_bits(healthy("laptop"), 2),
    "future": lambda run: shown_fresh(run, losses=[6.5, 5.9, 6.5]),
    "executed": lambda run: executed(run, devices=["cpu"]) if run.parameter("device") == "cuda" else run,
    "grad_checkpointing": lambda run: executed(run, passes=[2, 1]),
    "allocator": lambda run: executed(run, allocator={"setting": "expandable_segments:True"}),
    "peak_reserved": lambda run: with_steps(run, peak_reserved_mib=lambda step, mib: 75_001.0 if step == 60 else mib),
    "peak_reserved_gpu": lambda run: with_steps(
        with_parameter(run, "reserved_limit_mib", 80_000.0), peak_reserved_mib=lambda step, mib: 75_001.0
    ),
    "memory_order": lambda run: with_case(run, "training", state_mib=1e6),
    "clock": lambda run: with_steps(run, step_ms=lambda step, ms: ms / 1000),
    "trend_peak_alloc": lambda run: leaking(run, "peak_alloc_mib", 0.15),
    "trend_reserved": lambda run: leaking(run, "peak_reserved_mib", 0.8),
    "operator_growth": lambda run: with_operators(run, {"aten::mm": 1200, "aten::add.Tensor": 420}),
}


FAILED_STATUSES = ("failed", "oom", "nan", "stalled", "timeout", "crashed")


both_profiles = pytest.mark.parametrize("profile", ["checklist", "laptop"])


def judged(run, name):
    return {gate.name: gate for gate in smoke_gates(run)}[name]


def outcomes(run):
    return {gate.name: gate.outcome for gate in smoke_gates(run)}


GAPS = {
    "steps": lambda run: without_case(run, "training"),
    "finite": lambda run: ended(run, "crashed", 0),
    "anomaly": lambda run: without_case(run, "anomaly"),
    "loss_falls": lambda run: kept(run, 19),
    "route": lambda run: with_case(run, "training", executed=None),
    "attention": lambda run: not_compared(run, "attention"),
    "choice": lambda run: not_compared(run, "choice"),
    "gradients": lambda run: not_compared(run, "backward"),
    "train_step": lambda run: with_case(run, "training", attestation=None),
    "blocks": lambda run: covering(run, lambda rows: [row for row in rows if row["area"] != "blocks"]),
    "unrecorded": lambda run: with_case(run, "training", replay=None),
    "same_bits": lambda run: with_case(healthy("laptop"), "training", fingerprint=None),
    "future": lambda run: with_case(run, "training", fresh_tokens=None),
    "executed": lambda run: with_case(run, "training", executed=None),
    "grad_checkpointing": lambda run: ended(run, "unavailable", 0),
    "allocator": lambda run: executed(run, allocator={}),
    "peak_reserved": lambda run: missing(run, "peak_reserved_mib"),
    "peak_reserved_gpu": lambda run: missing(with_parameter(run, "reserved_limit_mib", 9e4), "peak_reserved_mib"),
    "memory_order": lambda run: with_case(run, "training", state_mib=NAN),
    "clock": lambda run: with_steps(run, step_ms=lambda step, ms: NAN if step == 50 else ms),
    "trend_peak_alloc": lambda run: kept(run, 59),
    "trend_reserved": lambda run: kept(run, 59),
    "operator_growth": lambda run: with_parameter(run, "profiler", False),
}


def test_every_gate_has_a_fault_and_a_gap():
    run = healthy()
    names = set(outcomes(run)) | set(outcomes(with_parameter(run, "reserved_limit_mib", 80_000.0)))
    assert set(FAULTS) == set(GAPS) == names


@pytest.mark.parametrize("run", [healthy("checklist"), healthy("laptop"), healthy("laptop", steps=1000)])
def test_a_healthy_run_passes_every_gate_that_is_required(run):
    assert {gate.outcome for gate in smoke_gates(run) if gate.required} == {PASS}
    assert verdict(smoke_gates(run)) == ("GO", [])


@pytest.mark.parametrize("name", FAULTS)
def test_every_gate_fails_and_makes_a_no_go(name):
    run = FAULTS[name](healthy())
    assert judged(run, name).outcome == FAIL
    assert judged(run, name).required
    found, reasons = verdict(smoke_gates(run))
    assert found == "NO-GO"
    assert any(reason.startswith(f"{name} failed") for reason in reasons)


@pytest.mark.parametrize("name", GAPS)
def test_every_gate_that_cannot_be_judged_says_so_and_why(name):
    run = GAPS[name](healthy())
    assert (judged(run, name).outcome, judged(run, name).required) == (NOT_RUN, True)
    assert judged(run, name).detail
    assert word(run) in ("INCOMPLETE", "NO-GO")


@pytest.mark.parametrize(
    "name", ["anomaly", "route", "peak_reserved", "peak_reserved_gpu", "memory_order", "operator_growth"]
)
def test_a_single_gap_is_incomplete(name):
    assert word(GAPS[name](healthy())) == "INCOMPLETE"


# The ends of a case


@both_profiles
@pytest.mark.parametrize("status", [*FAILED_STATUSES, "unavailable", "interrupted"])
def test_the_end_of_the_training_decides_the_steps(profile, status):
    run = ended(healthy(profile), status, 40)
    failed = status not in ("unavailable", "interrupted")
    assert judged(run, "steps").outcome == (FAIL if failed else NOT_RUN)
    assert "because" in judged(run, "steps").detail
    assert word(run) == ("NO-GO" if failed else "INCOMPLETE")
    assert (judged(run, "finite").outcome == FAIL) == (status == "nan")


@both_profiles
@pytest.mark.parametrize("case_id", ["anomaly", "profiler"])
@pytest.mark.parametrize("status", [*FAILED_STATUSES, "unavailable", "interrupted"])
def test_the_end_of_another_case_decides_its_own_gate_alone(profile, case_id, status):
    if case_id == "profiler" and profile == "laptop":
        case_id = "dense"  # a yardstick serves no gate
    run = with_case(healthy(profile), case_id, status=status, reason="because")
    name = {"anomaly": "anomaly", "profiler": "operator_growth", "dense": None}[case_id]
    expected = outcomes(healthy(profile))
    if name:
        expected[name] = NOT_RUN if status in ("unavailable", "interrupted") else FAIL
    assert outcomes(run) == expected


@both_profiles
@pytest.mark.parametrize("status", [*FAILED_STATUSES, "unavailable", "interrupted"])
@pytest.mark.parametrize("count", [0, 40, 100])
def test_a_training_that_was_cut_short_passes_and_warns_of_nothing(profile, status, count):
    others = {"anomaly", "operator_growth"} if profile == "checklist" else {"anomaly"}
    whole = healthy(profile)
    facts = whole.case("training")
    recorded = {name: facts[name] for name in ("state_mib", "device_total_mib", "executed", "operators")}
    warned = with_steps(whole, peak_reserved_mib=lambda step, mib: 70_001.0, ooms=lambda step, ooms: step)
    for run in (ended(whole, status, count), *(ended(run, status, count, **recorded) for run in (whole, warned))):
        found = outcomes(run)
        assert {found[name] for name in set(found) - others} <= {FAIL, NOT_RUN}


def test_what_was_seen_before_the_training_was_cut_short_still_fails():
    run = ended(
        healthy(), "interrupted", 90, executed=routed(healthy(), "training", "gather").case("training")["executed"]
    )
    run = leaking(with_steps(run, peak_reserved_mib=lambda step, mib: 80_000.0), "peak_alloc_mib", 0.2)
    assert [judged(run, name).outcome for name in ("route", "peak_reserved", "trend_peak_alloc")] == [FAIL] * 3


def test_a_run_of_which_nothing_was_recorded_is_incomplete():
    run = healthy()
    run = replace(run, cases=run.cases[:0], steps=pd.DataFrame(columns=STEP_COLUMNS))
    assert set(outcomes(run).values()) == {NOT_RUN}
    assert word(run) == "INCOMPLETE"


def test_a_worker_that_ended_well_unseen_by_its_runner_is_judged_by_its_steps():
    run = with_case(healthy(), "anomaly", steps_done=NAN, seconds=NAN)
    assert judged(run, "anomaly").detail == "10 steps without a finding"


# Figures


@pytest.mark.parametrize("figure", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_value_that_is_not_finite_fails(figure, value):
    run = with_steps(healthy(), **{figure: lambda step, now: value if step == 100 else now})
    assert (judged(run, "finite").outcome, judged(run, "finite").measured) == (FAIL, 1)


@pytest.mark.parametrize(("fall", "expected"), [(0.0, FAIL), (0.009, FAIL), (0.011, PASS), (-0.5, FAIL), (1.0, PASS)])
def test_the_loss_must_fall_by_a_percent(fall, expected):
    run = with_steps(healthy(), loss=lambda step, loss: 6.0 * (1 - fall * (step > 50)))
    gate = judged(run, "loss_falls")
    assert gate.outcome == expected
    assert gate.measured == pytest.approx(100 * fall)


def test_a_loss_that_falls_slowly_all_the_way_is_for_a_person_to_judge():
    slowly = with_steps(healthy(), loss=lambda step, loss: 6.0 - 1e-4 * step)
    assert (judged(slowly, "loss_falls").outcome, word(slowly)) == (WARN, "REVIEW")
    at_a_stand = with_steps(healthy(), loss=lambda step, loss: 6.0 - 1e-4 * min(step, 80))
    assert judged(at_a_stand, "loss_falls").outcome == FAIL


def test_a_loss_that_fell_and_came_back_has_not_fallen():
    run = with_steps(healthy(), loss=lambda step, loss: 3.0 if 10 < step <= 90 else 6.0)
    assert judged(run, "loss_falls").outcome == FAIL


def test_a_loss_that_is_zero_from_the_start_does_not_fall():
    assert judged(with_steps(healthy(), loss=lambda step, loss: 0.0), "loss_falls").outcome == FAIL


@pytest.mark.parametrize("ran", [["gather"], ["gather", "packed"], ["masked"], []])
def test_another_route_than_the_one_asked_for_fails(ran):
    run = routed(healthy(backend="packed"), "training", *ran)
    assert judged(run, "route").outcome == FAIL
    assert judged(healthy(backend="packed"), "route").outcome == PASS


def test_checkpointing_is_required_by_the_checklist_only():
    run = asked_for(healthy("laptop"), "training", grad_checkpointing=False)
    assert (judged(run, "grad_checkpointing").outcome, judged(run, "grad_checkpointing").required) == (FAIL, False)
    assert word(run) == "GO"


@pytest.mark.parametrize(
    ("peak_mib", "expected"),
    [(1_790.0, PASS), (70_000.0, PASS), (70_000.01, WARN), (75_000.0, WARN), (75_000.01, FAIL)],
)
def test_the_checklists_limit_of_reserved_memory(peak_mib, expected):
    run = with_steps(healthy(), peak_reserved_mib=lambda step, mib: peak_mib if step == 30 else mib)
    gate = judged(run, "peak_reserved")
    assert (gate.outcome, gate.limit, gate.unit) == (expected, 70_000, "MiB")
    assert gate.margin == pytest.approx(70_000 - peak_mib, abs=0.05)
    assert word(run) == {PASS: "GO", WARN: "REVIEW", FAIL: "NO-GO"}[expected]


@pytest.mark.parametrize(("peak_mib", "expected"), [(42.0, PASS), (42.1, WARN), (45.0, WARN), (45.1, FAIL)])
def test_a_limit_that_was_given_warns_in_the_checklists_proportion(peak_mib, expected):
    run = with_steps(healthy("laptop", reserved_limit_mib=42), peak_reserved_mib=lambda step, mib: peak_mib)
    gate = judged(run, "peak_reserved")
    assert (gate.outcome, gate.limit, gate.detail) == (expected, 42, "simulated")


def test_no_given_limit_lifts_the_checklists_on_a_gpu():
    run = with_steps(healthy(reserved_limit_mib=90_000), peak_reserved_mib=lambda step, mib: 76_000.0)
    assert judged(run, "peak_reserved").outcome == PASS
    assert (judged(run, "peak_reserved_gpu").outcome, judged(run, "peak_reserved_gpu").required) == (FAIL, True)
    assert word(run) == "NO-GO"


def test_on_a_cpu_the_checklists_limit_is_not_run_and_not_required():
    run = healthy("laptop")
    assert judged(run, "peak_reserved").outcome == PASS
    gate = judged(run, "peak_reserved_gpu")
    assert (gate.outcome, gate.required, gate.limit, gate.measured) == (NOT_RUN, False, 70_000, None)
    assert word(run) == "GO"


def test_without_a_known_peak_the_run_has_no_limit_of_its_own():
    run = healthy("laptop", layers=5)
    assert (judged(run, "peak_reserved").outcome, judged(run, "peak_reserved").required) == (NOT_RUN, False)
    assert word(run) == "GO"


@both_profiles
@pytest.mark.parametrize("name", ["peak_reserved", "trend_reserved", "trend_peak_alloc"])
def test_steps_without_a_figure_do_not_pass(profile, name):
    column = "peak_alloc_mib" if name == "trend_peak_alloc" else "peak_reserved_mib"
    run = with_steps(healthy(profile), **{column: lambda step, mib: mib if step < 40 else NAN})
    assert judged(run, name).outcome == NOT_RUN
    assert word(run) == "INCOMPLETE"


@pytest.mark.parametrize(
    ("profile", "factor"),
    [("checklist", 2**-10), ("laptop", 2**-10), ("checklist", 2**20), ("checklist", 2**10)],
    ids=["GiB", "GiB-cpu", "bytes", "KiB"],
)
def test_memory_in_another_unit_breaks_the_order(profile, factor):
    scale = dict.fromkeys(("peak_alloc_mib", "peak_reserved_mib"), lambda step, mib: mib * factor)
    assert judged(with_steps(healthy(profile), **scale), "memory_order").outcome == FAIL


def test_each_link_of_the_memory_order_is_judged():
    run = healthy()
    for broken in (
        with_case(run, "training", state_mib=1701.0),
        with_steps(run, peak_reserved_mib=lambda step, mib: 1699.0),
        with_case(run, "training", device_total_mib=1700.0),
    ):
        assert judged(broken, "memory_order").outcome == FAIL
    for gap in (with_case(run, "training", device_total_mib=NAN), missing(run, "peak_alloc_mib")):
        assert judged(gap, "memory_order").outcome == NOT_RUN


# Trends


at_every_base = pytest.mark.parametrize("base_mib", [34.0, 1762.0, 20000.0])


@at_every_base
@pytest.mark.parametrize(("growth", "expected"), [(0.0, PASS), (0.05, WARN), (0.15, FAIL), (2.75, FAIL)])
def test_a_leak_is_seen_at_every_size(base_mib, growth, expected):
    run = leaking(healthy(base_mib=base_mib), "peak_alloc_mib", growth)
    found = {gate.name: gate for gate in smoke_gates(run)}
    gate = found["trend_peak_alloc"]
    assert (gate.outcome, gate.limit, gate.unit) == (expected, 10, "%")
    assert gate.measured == pytest.approx(100 * growth, rel=0.2)
    assert gate.margin == pytest.approx(10 - gate.measured)
    assert found["trend_reserved"].outcome == PASS


@at_every_base
def test_growth_of_reserved_memory_counts_from_a_segment_on(base_mib):
    def reserving(extra_mib):
        return leaking(healthy(base_mib=base_mib), "peak_reserved_mib", extra_mib / (1.05 * base_mib))

    assert judged(reserving(18), "trend_reserved").outcome == PASS
    assert judged(reserving(max(30, 0.15 * base_mib)), "trend_reserved").outcome == FAIL


@pytest.mark.parametrize(("counter", "words"), [("alloc_retries", "1 retries"), ("ooms", "1 OOMs")])
@pytest.mark.parametrize("at", [11, 60, 100])
def test_a_retry_or_oom_of_the_allocator_after_warmup_never_passes(counter, words, at):
    run = with_steps(healthy(), **{counter: lambda step, count: 3 + (step >= at)})
    for name in ("trend_peak_alloc", "trend_reserved"):
        gate = judged(run, name)
        assert gate.outcome == WARN
        assert words in gate.detail
    assert word(run) == "REVIEW"


@pytest.mark.parametrize("counter", ["alloc_retries", "ooms"])
def test_retries_of_the_warmup_are_forgiven(counter):
    run = with_steps(healthy(), **{counter: lambda step, count: min(step, 10)})
    assert word(run) == "GO"


def test_a_retry_does_not_soften_a_leak():
    run = leaking(with_steps(healthy(), alloc_retries=lambda step, count: step), "peak_alloc_mib", 0.2)
    assert judged(run, "trend_peak_alloc").outcome == FAIL


def test_a_run_that_does_not_count_retries_does_not_pass():
    assert judged(missing(healthy(), "alloc_retries"), "trend_reserved").outcome == NOT_RUN


# Operators


@both_profiles
@pytest.mark.parametrize(
    ("late", "expected"),
    [
        ({"aten::mm": 1200, "aten::add.Tensor": 300}, PASS),
        ({"aten::mm": 1100, "aten::add.Tensor": 300}, PASS),
        ({"aten::mm": 1200, "aten::add.Tensor": 316}, FAIL),
        ({"aten::mm": 1200, "aten::add.Tensor": 300, "aten::roll": 12}, FAIL),
        ({"aten::mm": 1230, "aten::add.Tensor": 300}, FAIL),  # no operator by 5 %, all together by 2 %
    ],
)
def test_operators_that_are_called_more_often_late_than_early_fail(profile, late, expected):
    assert judged(with_operators(healthy(profile), late), "operator_growth").outcome == expected


@pytest.mark.parametrize("step", [11, 100])
def test_windows_that_heartbeats_contradict_are_not_believed(step):
    run = with_steps(healthy("laptop"), ops=lambda at, ops: ops + (at == step))
    gate = judged(run, "operator_growth")
    assert gate.outcome == NOT_RUN
    assert "1,500 calls, in the heartbeats 1,501" in gate.detail


def test_the_operator_that_grew_is_named():
    gate = judged(FAULTS["operator_growth"](healthy()), "operator_growth")
    assert gate.measured == 1
    assert "aten::add.Tensor" in gate.detail


@both_profiles
def test_operators_that_were_not_counted_are_not_judged(profile):
    run = healthy(profile)
    uncounted = with_case(run, counted(profile == "checklist"), operators=NAN)
    for gap in (uncounted, with_parameter(run, "profiler", False)):
        assert judged(gap, "operator_growth").outcome == NOT_RUN
        assert word(gap) == "INCOMPLETE"
    assert judged(without_case(healthy(), "profiler"), "operator_growth").outcome == NOT_RUN


def test_compiled_layers_are_not_judged_and_that_is_incomplete():
    run = not_compared(healthy(), "attention", "choice", "backward", why="compiled: a hook would be compiled in")
    assert {judged(run, name).outcome for name in ("attention", "choice", "gradients")} == {NOT_RUN}
    assert "compiled" in judged(run, "attention").detail
    assert (judged(run, "train_step").outcome, word(run)) == (PASS, "INCOMPLETE")


def test_anomaly_detection_that_does_not_notice_a_planted_nan_fails():
    run = with_case(healthy(), "anomaly", planted_nan={"said": None})
    assert judged(run, "anomaly").detail == "anomaly detection did not notice a NaN that was planted"
    assert (judged(run, "anomaly").outcome, word(run)) == (FAIL, "NO-GO")
    assert judged(with_case(healthy(), "anomaly", planted_nan=None), "anomaly").outcome == NOT_RUN


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": [None]},
        {"losses": [6.5, 6.0]},
        {"changes": {"65": 0.2}},
        {"changes": {"65": None}},
        {"unseen": [65]},
    ],
)
def test_a_model_that_reads_the_future_fails(changes):
    assert judged(shown_fresh(healthy(), **changes), "future").outcome == FAIL


@pytest.mark.parametrize(
    "changes", [{"losses": []}, {"losses": [6.5, 6.5]}, {"changes": {}}, {"changes": {"65": 0.0}}, {"tokens": 512}]
)
def test_a_model_that_was_shown_too_little_is_not_judged(changes):
    assert judged(shown_fresh(healthy(), **changes), "future").outcome == NOT_RUN


def test_an_attestation_without_the_last_step_is_not_enough():
    run = healthy()
    run = with_case(run, "training", attestation=run.case("training")["attestation"][:-1])
    assert judged(run, "attention").outcome == NOT_RUN


@pytest.mark.parametrize("kind", ["parameters", "gradients", "optimizer", "activations"])
def test_another_dtype_anywhere_fails(kind):
    steps = healthy().case("training")["executed"]
    run = executed(healthy(), dtypes={**steps[0]["dtypes"], kind: ["float32"]})
    assert judged(run, "executed").outcome == FAIL


@pytest.mark.parametrize(
    "change",
    [
        {"step_ms": lambda step, ms: 2 * ms},
        {"step_ms": lambda step, ms: 0.75 * ms, "tokens_per_s": lambda step, pace: pace / 0.75},
        {"tokens_per_s": lambda step, pace: pace / 2},
        {"ts": lambda step, ts: 1.7e9},
    ],
)
def test_times_that_no_clock_told_fail(change):
    assert judged(with_steps(healthy(), **change), "clock").outcome == FAIL


def test_what_is_said_to_be_reserved_and_is_no_whole_segment_fails():
    meter = healthy().case("training")["meter"]
    run = with_case(healthy(), "training", meter={**meter, "reserved_mib": 63.4})
    gate = judged(run, "memory_order")
    assert gate.outcome == FAIL
    assert "63.40 MiB reserved then are no whole segments" in gate.detail


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peak_alloc_mib": lambda step, mib: 0.8 if step == 30 else mib}, "alloc_mib > peak_alloc_mib in 1 step"),
        (
            {"reserved_mib": lambda step, mib: 10 * mib},
            "reserved_mib > peak_reserved_mib in 100 steps",
        ),
    ],
)
def test_figures_of_a_step_that_break_their_order_fail(change, said):
    gate = judged(with_steps(healthy(), **change), "memory_order")
    assert gate.outcome == FAIL
    assert said in gate.detail


def test_an_allocator_that_tells_nothing_of_what_is_active_breaks_no_order():
    assert judged(with_steps(healthy(), active_mib=lambda step, mib: 0.0), "memory_order").outcome == PASS
    some = with_steps(healthy(), active_mib=lambda step, mib: 0.0 if step == 30 else mib)
    assert "alloc_mib > active_mib in 1 step" in judged(some, "memory_order").detail


def test_operators_that_are_not_all_counted_are_not_judged():
    meter = {**healthy("laptop").case("training")["meter"], "calls": 100, "counted": 30}
    gate = judged(with_case(healthy("laptop"), "training", meter=meter), "operator_growth")
    assert gate.outcome == NOT_RUN
    assert "of 100 calls whose number was known 30 were counted" in gate.detail


# Advice


def advised(run, words):
    return any(words in line for line in smoke_advice(run))


def test_advice_is_given_where_it_helps_and_changes_no_gate():
    plain = healthy(alloc_conf="expandable_segments:True")
    quiet = without_case(plain, "dense")
    assert smoke_advice(quiet) == []
    cases = {
        "max_split_size_mb": without_case(healthy(), "dense"),
        "slack is 36 %": with_steps(quiet, **dict.fromkeys(("alloc_mib", "active_mib"), lambda step, mib: 0.75 * mib)),
        "restart before": leaking(quiet, "peak_reserved_mib", 0.05),
        "dense attention, in this run": with_steps(plain, "dense", tokens_per_s=lambda step, rate: 2 * rate),
    }
    for words, run in cases.items():
        assert [words in line for line in smoke_advice(run)] == [True], words
        unadvised = quiet if words != "restart before" else run
        assert outcomes(run) == outcomes(unadvised)


def test_slack_up_to_30_percent_is_not_mentioned():
    run = with_steps(healthy(), active_mib=lambda step, mib: 0.71 * 1.05 * 1700)
    assert not advised(run, "slack")


def test_the_steps_that_are_left_follow_the_slope():
    run = with_steps(healthy(), peak_reserved_mib=lambda step, mib: 40_000.0 + 100 * step)
    (line,) = [line for line in smoke_advice(run) if "restart before" in line]
    assert "75,000 MiB are reached in 250 steps" in line


def test_the_pace_of_the_yardstick_leaves_out_the_warmup():
    run = with_steps(healthy(), tokens_per_s=lambda step, rate: 100.0 * step)
    run = with_steps(run, "dense", tokens_per_s=lambda step, rate: 1000.0 * step)
    assert advised(run, "5,550 tokens/s; the same model with dense attention, in this run: 20,500 tokens/s.")
    assert advised(run, "The speed is 0.27x that of dense.")


@pytest.mark.parametrize("count", [0, 1, 10, 11])
def test_a_short_run_can_be_advised(count):
    assert not advised(kept(healthy(), count), "restart before")


# From disk


DAMAGES = {
    "healthy": lambda run: run,
    **{f"fault in {name}": fault for name, fault in FAULTS.items()},
    **{f"gap in {name}": gap for name, gap in GAPS.items()},
    **{f"training {s}": lambda run, s=s: ended(run, s, 40) for s in (*FAILED_STATUSES, "interrupted", "unavailable")},
    **{f"anomaly {s}": lambda run, s=s: with_case(run, "anomaly", status=s, reason="137") for s in FAILED_STATUSES},
    "inf": lambda run: with_steps(run, loss=lambda step, loss: INF if step == 90 else loss),
    "leak of 5 %": lambda run: leaking(run, "peak_alloc_mib", 0.05),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_is_judged_from_its_files_as_from_memory(tmp_path, damage):
    run = DAMAGES[damage](healthy())
    read = open_run(save(run, tmp_path / "run"))
    assert smoke_gates(read) == smoke_gates(run)
    assert smoke_advice(read) == smoke_advice(run)


def test_a_reason_names_the_figure_its_limit_and_its_unit():
    _, (reason,) = verdict(smoke_gates(FAULTS["peak_reserved"](healthy())))
    assert reason == "peak_reserved failed at 75,001 MiB (limit 70,000)"


def test_what_the_judge_finds_in_a_step_taken_again_fails_too():
    wrong = {"attention": {"layer 1 win": "relative error 0.3"}}
    gate = judged(replayed(healthy(), judged={"step": 25, "wrong": wrong}), "unrecorded")
    assert gate.outcome == FAIL
    assert "layer 1 win, again" in gate.detail


def test_bits_that_differ_within_what_sums_of_another_order_change_are_said():
    assert "same bits" in judged(healthy(), "unrecorded").detail
    gate = judged(replayed(healthy(), same_bits=False), "unrecorded")
    assert gate.outcome == PASS
    assert "sums of another order" in gate.detail


def test_where_every_step_was_recorded_none_is_taken_again():
    run = asked_for(replayed(healthy(), steps=[], judged=None, followed=2), "training", steps=2)
    gate = judged(run, "unrecorded")
    assert (gate.outcome, gate.detail) == (PASS, "every step was recorded")


def test_blocks_that_could_not_be_compared_did_not_run():
    gate = judged(not_compared(healthy(), "blocks", why="compiled: no hook"), "blocks")
    assert gate.outcome == NOT_RUN
    assert "step 1, layer 1 block: compiled: no hook" in gate.detail


@pytest.mark.parametrize(("compile", "required"), [(False, True), (True, True), ("graph", False)])
def test_blocks_must_be_compared_unless_the_step_is_a_graph(compile, required):
    run = asked_for(not_compared(healthy(), "blocks", why="not seen"), "training", compile=compile)
    gate = judged(run, "blocks")
    assert (gate.outcome, gate.required) == (NOT_RUN, required)


@pytest.mark.parametrize(("area", "name"), GATES.items())
def test_an_area_of_which_nothing_was_compared_did_not_run(area, name):
    run = covering(healthy(), lambda rows: [row for row in rows if row["area"] != area])
    assert (judged(run, name).outcome, word(run)) == (NOT_RUN, "INCOMPLETE")


@pytest.mark.parametrize(("area", "name"), [("attention", "attention"), ("choice", "choice"), ("blocks", "blocks")])
def test_one_layer_is_too_few_and_one_that_tells_nothing_beside_others_is_not(area, name):
    run = covering(healthy(), lambda rows: [row for row in rows if row["area"] != area or row["layer"] == 3])
    assert "compared in 1 layer, in 2 is asked" in judged(run, name).detail
    assert judged(not_compared(healthy(), area, layers=(3,)), name).outcome == PASS


@pytest.mark.parametrize(("place", "said"), [(0, "step 1"), (1, "between"), (-1, "step 100")])
def test_a_recorded_step_that_is_missing_is_named(place, said):
    steps = list(healthy().case("training")["attestation"])
    del steps[place]
    gate = judged(with_case(healthy(), "training", attestation=steps), "attention")
    assert gate.outcome == NOT_RUN
    assert said in gate.detail


def test_a_smoke_that_took_no_step_again_did_not_run_that_gate():
    gate = judged(replayed(healthy(), steps=[], judged=None), "unrecorded")
    assert (gate.outcome, gate.detail) == (NOT_RUN, "0 steps taken again, 10 are due")
    assert judged(replayed(healthy(), steps=[5]), "unrecorded").outcome == NOT_RUN
    assert judged(replayed(healthy(), followed=99), "unrecorded").detail == "99 updates followed, 100 are due"


@pytest.mark.parametrize("area", ["attention", "choice"])
@pytest.mark.parametrize("rows", [8, None])
def test_few_rows_are_too_few(area, rows):
    run = covering(healthy(), lambda told: [{**row, "rows": rows} if row["area"] == area else row for row in told])
    gate = judged(run, area)
    assert (gate.outcome, word(run)) == (NOT_RUN, "INCOMPLETE")
    assert f"compared in {rows or 0} rows of a layer, in 128 is asked" in gate.detail
