"""The gates of several GPUs: each passes, fails and names the rank, and does not run."""

from dataclasses import replace

import pytest

from nsa_lib.judgement.gate import FAIL, FAILED_STATUSES, NOT_RUN, PASS, WARN, verdict
from nsa_lib.workbook.several_gpus.gates import several_advice, several_gates, several_headline
from nsa_lib.workbook.several_gpus.measures import odd_ones
from tests.made import asked_for, with_case
from tests.workbook.several_gpus.made import digest, ended, healthy, kept, with_digest, with_rank, with_steps

NAN = float("nan")

STRATEGIES = ("ddp", "fsdp2")


def judged(run, name):
    return {gate.name: gate for gate in several_gates(run)}[name]


@pytest.mark.parametrize("profile", ["laptop", "checklist"])
def test_a_healthy_run_is_go(profile):
    run = healthy(profile)
    assert verdict(several_gates(run)) == ("GO", [])
    assert several_headline(run) == "2 ranks; peak allocated of a rank: ddp 13, fsdp2 10 MiB, of one GPU 14 MiB"


def flipped(run, strategy):
    return with_steps(run, strategy, 1, part_norms=lambda step, norms: [2.0] * len(norms) if step >= 5 else norms)


def grown(run, strategy, column, share):
    def rise(step, mib):
        return mib * (1 + share * max(step - 10, 0) / 50)

    return with_steps(run, strategy, 1, **{column: rise})


def other_executed(run, strategy, **changes):
    steps = [{**step, **changes} for step in run.case(strategy)["ranks"][1]["executed"]]
    return with_rank(run, strategy, 1, executed=steps)


def more_calls(run, strategy):
    counts = {"early": {"aten::mm": {"count": 100}}, "late": {"aten::mm": {"count": 200}}}
    case_id = f"{strategy}_profiler" if run.parameter("device") == "cuda" else strategy
    return with_rank(run, case_id, 1, operators=counts)


FAULTS = {
    "start": lambda run, s: with_rank(run, s, 1, start={"hash": "other", "parts": []}),
    "data": lambda run, s: with_steps(run, s, 1, data=lambda step, own: ["sequence 0"] if step == 7 else own),
    "loss": lambda run, s: with_steps(run, s, 1, loss=lambda step, loss: loss + (1.0 if step == 7 else 0.0)),
    "gradients": flipped,
    "parameters": lambda run, s: with_digest(
        run, s, 1, 20, hash="other", parts=[{"norm": 20.0, "projections": [9.0] * 4}] * 2
    ),
    "executed": lambda run, s: other_executed(run, s, routes=[["gather"]] * 99),
    "parts": lambda run, s: other_executed(run, s, held_share=0.75),
    "trend_peak_alloc": lambda run, s: grown(run, s, "peak_alloc_mib", 0.3),
    "trend_reserved": lambda run, s: grown(run, s, "peak_reserved_mib", 9.0),
    "operator_growth": more_calls,
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", FAULTS)
def test_each_gate_fails_and_names_the_rank(name, strategy):
    run = healthy()
    if name == "executed":
        layers = len(run.case(strategy)["executed"][0]["routes"])
        run = other_executed(run, strategy, routes=[["gather"]] * layers)
    else:
        run = FAULTS[name](run, strategy)
    gate = judged(run, f"{name}_{strategy}")
    assert (gate.outcome, gate.required) == (FAIL, True), gate
    assert "rank 1" in gate.detail or name in ("loss", "parts")
    assert verdict(several_gates(run))[0] == "NO-GO"
    other = STRATEGIES[1 - STRATEGIES.index(strategy)]
    assert judged(run, f"{name}_{other}").outcome == PASS


@pytest.mark.parametrize(
    "changes",
    [{"passes": [1, 1]}, {"dtypes": {"parameters": ["bfloat16"]}}, {"devices": ["cuda"]}, {"routes": [[], []]}],
)
def test_a_rank_that_executes_something_else_fails(changes):
    gate = judged(other_executed(healthy(), "ddp", **changes), "executed_ddp")
    assert (gate.outcome, gate.detail) == (FAIL, "rank 1, step 1")


def test_a_rank_that_does_not_say_what_it_holds_is_no_pass():
    gate = judged(other_executed(healthy(), "ddp", held_share=None), "parts_ddp")
    assert (gate.outcome, gate.detail) == (NOT_RUN, "a rank did not say what it holds")


@pytest.mark.parametrize(("strategy", "share", "said"), [("fsdp2", 1.0, "200 %"), ("ddp", 0.5, "100 %")])
def test_a_strategy_that_is_really_the_other_one_fails(strategy, share, said):
    run = healthy()
    for rank in range(2):
        steps = [{**step, "held_share": share} for step in run.case(strategy)["ranks"][rank]["executed"]]
        run = with_rank(run, strategy, rank, executed=steps)
    gate = judged(run, f"parts_{strategy}")
    assert (gate.outcome, gate.detail) == (FAIL, f"step 1: 2 ranks hold {said} of the parameters in all")


@pytest.mark.parametrize("status", FAILED_STATUSES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_case_that_dies_fails_its_steps_and_passes_nothing(strategy, status):
    run = ended(healthy(), strategy, status)
    found = {gate.name: gate for gate in several_gates(run)}
    assert found[f"steps_{strategy}"].outcome == FAIL
    assert "rank 1: because" in found[f"steps_{strategy}"].detail
    own = [gate for name, gate in found.items() if name.endswith(f"_{strategy}") and not name.startswith("steps")]
    assert {gate.name for gate in own if gate.outcome == FAIL} <= {f"operator_growth_{strategy}"}
    assert all(gate.name.startswith("straggler") for gate in own if gate.outcome == PASS)
    assert verdict(list(found.values()))[0] == "NO-GO"


@pytest.mark.parametrize("case_id", ["one", "ddp", "fsdp2", "ddp_other", "collectives"])
def test_a_rank_that_did_fewer_steps_is_named_though_its_case_says_ok(case_id):
    rank = 0 if case_id == "one" else 1
    gate = judged(kept(healthy(), case_id, rank, 3), f"steps_{case_id}")
    assert (gate.outcome, gate.measured) == (FAIL, 3)
    assert case_id == "one" or gate.detail == "rank 1 did 3"


GAPS = {
    "start": lambda run: with_case(run, "one", start=None),
    "data": lambda run: kept(run, "one", 0, 0),
    "loss": lambda run: kept(run, "ddp", 1, 0),
    "gradients": lambda run: kept(run, "one", 0, 0),
    "parameters": lambda run: with_rank(run, "ddp", 1, digests=None),
    "executed": lambda run: with_rank(run, "ddp", 1, executed=None),
    "parts": lambda run: with_rank(run, "ddp", 1, executed=None),
    "trend_peak_alloc": lambda run: kept(run, "ddp", 1, 40),
    "trend_reserved": lambda run: kept(run, "ddp", 1, 40),
    "operator_growth": lambda run: with_rank(run, "ddp", 1, operators=None),
    "even": lambda run: kept(run, "ddp", 1, 0),
    "straggler": lambda run: kept(run, "ddp", 1, 5),
}


@pytest.mark.parametrize("name", GAPS)
def test_each_gate_does_not_run_without_its_data(name):
    gate = judged(GAPS[name](healthy()), f"{name}_ddp")
    assert (gate.outcome, gate.required) == (NOT_RUN, True), gate


def test_averaged_gradients_that_differ_in_one_bit_fail_with_ddp():
    run = with_steps(healthy(), "ddp", 1, part_norms=lambda step, norms: [norms[0] + 1e-7, *norms[1:]])
    assert judged(run, "gradients_ddp").outcome == FAIL


@pytest.mark.parametrize(("first", "factor", "outcome"), [(5, 1.1, FAIL), (40, 1.1, PASS), (40, 1.3, FAIL)])
def test_norms_are_held_closely_until_two_trainings_part(first, factor, outcome):
    def off(step, norms):
        return [norm * factor for norm in norms] if step >= first else norms

    assert judged(with_steps(healthy(), "fsdp2", 1, part_norms=off), "gradients_fsdp2").outcome == outcome


def test_of_two_ranks_with_other_parameters_the_one_that_one_gpu_does_not_agree_with_is_named():
    far = [{"norm": 20.0, "projections": [1.1, 2.0, 3.0, 4.0]}] * 2
    for rank in (0, 1):
        gate = judged(with_digest(healthy(), "ddp", rank, 30, hash="other", parts=far), "parameters_ddp")
        assert (gate.outcome, gate.detail) == (
            FAIL,
            f"rank {rank}: not the parameters of the other ranks after step 30",
        )
    gate = judged(with_digest(healthy(), "ddp", 1, 30, hash="other"), "parameters_ddp")
    assert (gate.outcome, gate.detail.split(":")[0]) == (FAIL, "ranks 0, 1")


def test_parameters_that_all_ranks_share_but_one_gpu_does_not_have_fail():
    run, far = (
        healthy(),
        [{"norm": 20.0, "projections": [1.0, 2.0, 3.0, 4.0]}, {"norm": 20.0, "projections": [2.0] * 4}],
    )
    for rank in (0, 1):
        run = with_digest(run, "fsdp2", rank, 30, parts=far)
    gate = judged(run, "parameters_fsdp2")
    assert gate.outcome == FAIL
    assert gate.detail.endswith(
        "after step 30, in the rows of rank 1; 6 times the bits of one GPU with the shares in turn"
    )


@pytest.mark.parametrize(("slower", "outcome"), [(1.04, PASS), (1.5, WARN)])
def test_a_straggler_is_a_warning_and_named(slower, outcome):
    run = with_steps(healthy(), "ddp", 1, own_ms=lambda step, ms: slower * ms)
    gate = judged(run, "straggler_ddp")
    assert gate.outcome == outcome
    assert gate.detail.startswith("rank 1")
    assert verdict(several_gates(run))[0] == {PASS: "GO", WARN: "REVIEW"}[outcome]


def test_steps_that_vary_widen_the_band_of_a_straggler():
    run = with_steps(healthy(), "ddp", 1, own_ms=lambda step, ms: ms * (1.5 if step % 2 else 0.9))
    gate = judged(run, "straggler_ddp")
    assert gate.outcome == PASS
    assert gate.limit > 50


def test_ranks_that_need_other_memory_fail_with_ddp_and_are_shown_with_fsdp2():
    for strategy, required in (("ddp", True), ("fsdp2", False)):
        run = with_steps(healthy(), strategy, 1, peak_alloc_mib=lambda step, mib: 1.2 * mib)
        gate = judged(run, f"even_{strategy}")
        assert (gate.outcome, gate.required, gate.measured) == (FAIL, required, 20.0)
        assert gate.detail.startswith("rank 1 allocates")
        assert (verdict(several_gates(run))[0] == "NO-GO") == required


@pytest.mark.parametrize(("mib", "outcome"), [(69_000.0, PASS), (71_000.0, WARN), (75_001.0, FAIL)])
def test_the_reserved_memory_of_every_rank_has_the_checklists_limits(mib, outcome):
    run = with_steps(healthy("checklist"), "fsdp2", 1, peak_reserved_mib=lambda step, own: mib if step == 9 else own)
    gate = judged(run, "peak_reserved_fsdp2")
    assert (gate.outcome, gate.required, gate.detail) == (outcome, True, "rank 1")


def test_an_allocator_at_its_cap_warns():
    run = with_steps(healthy(), "ddp", 1, alloc_retries=lambda step, count: int(step > 30))
    assert judged(run, "trend_peak_alloc_ddp").outcome == WARN


def test_one_gpu_alone_has_no_straggler_and_is_judged_all_the_same():
    gates = several_gates(healthy(gpus=1))
    assert verdict(gates) == ("GO", [])
    assert not next(gate for gate in gates if gate.name == "straggler_ddp").required


def test_the_odd_one_is_the_one_that_most_are_not():
    assert odd_ones(["a", "a", "b"]) == [2]
    assert odd_ones(["a", "b"]) == [0, 1]
    assert odd_ones(["a", "a"]) == []
    assert odd_ones(["a", "b"], "b") == [0]


def test_advice_says_what_each_strategy_leaves_free_and_what_the_link_does():
    run = healthy()
    said = "\n".join(several_advice(run))
    assert (
        "ddp (copies of the model): a GPU's peak is 13 MiB, that of one GPU with the whole batch 14 MiB, +7 %" in said
    )
    assert "The fastest collective moved" in said
    linked = replace(run, info={**run.info, "environment": {**run.info["environment"], "nvlink_gb_per_s": 478.0}})
    assert "nvidia-smi tells 478 GB/s" in "\n".join(several_advice(linked))


def test_a_run_that_recorded_nothing_is_no_go_and_says_so():
    run = healthy()
    for case_id in run.info["case_ids"]:
        run = ended(run, case_id, "crashed", count=0)
    assert verdict(several_gates(run))[0] == "NO-GO"
    assert several_headline(run) == "no step of several ranks was recorded"
    several_advice(run)
    assert set(run.figures) == {"loss", "memory", "own_time", "link"}


def test_a_float16_run_is_judged_by_its_own_budget():
    run = asked_for(healthy(dtype="float16"), "ddp")
    assert judged(run, "loss_ddp").limit > judged(healthy(), "loss_ddp").limit


@pytest.mark.parametrize(("step", "before"), [(10, 0), (20, 10)])
def test_parameters_that_are_still_those_of_before_fail(step, before):
    gate = judged(with_digest(healthy(), "fsdp2", 1, step, hash=digest(before, 2)["hash"]), "parameters_fsdp2")
    assert (gate.outcome, gate.detail) == (FAIL, f"rank 1: after step {step} its parameters are still those of before")


def parted(run, case_id, rank, first, *, loss=0.0, norm=1.0):
    """Return a run in which a training leaves the others' path from a step on: in its loss, and its norms."""
    return with_steps(
        run, case_id, rank,
        loss=lambda step, value: value + (loss if step >= first else 0.0),
        part_norms=lambda step, norms: [own * (norm if step >= first else 1.0) for own in norms],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "loss", "norm", "outcome"),
    [
        (30, 0.003, 1.45, PASS),  # within three times what one GPU does to itself
        (30, 0.007, 2.2, FAIL),
        (20, 0.003, 1.45, FAIL),  # before it does
    ],
)
def test_ranks_may_part_from_one_gpu_as_it_parts_from_itself_in_another_order(first, loss, norm, outcome):
    run = parted(healthy(), "one_in_turn", 0, 30, loss=0.0015, norm=1.2)
    run = parted(parted(run, "ddp", 0, first, loss=loss, norm=norm), "ddp", 1, first, loss=loss, norm=norm)
    assert judged(run, "loss_ddp").outcome == judged(run, "gradients_ddp").outcome == outcome


def test_ranks_may_be_where_one_gpu_with_their_shares_in_turn_is():
    run = parted(healthy(), "one_in_turn", 0, 30, loss=0.004, norm=3.0)
    assert judged(run, "loss_ddp").outcome == judged(run, "gradients_ddp").outcome == PASS
    for rank in (0, 1):
        run = parted(run, "ddp", rank, 30, loss=0.004, norm=3.0)
    assert judged(run, "loss_ddp").measured == 0
    assert judged(run, "gradients_ddp").measured == 1


@pytest.mark.parametrize(("first", "outcome"), [(1, FAIL), (2, PASS)])
@pytest.mark.parametrize(("gate", "off"), [("loss", {"loss": 0.0003}), ("gradients", {"norm": 1.01})])
def test_the_first_step_is_held_to_what_rounding_does_in_one(gate, off, first, outcome):
    run = healthy()
    for rank in (0, 1):
        run = parted(run, "ddp", rank, first, **off)
    assert judged(run, f"{gate}_ddp").outcome == outcome


def test_one_gpu_whose_shares_in_turn_are_another_step_is_no_evidence():
    run = parted(healthy(), "one_in_turn", 0, 1, loss=0.01, norm=1.3)
    for rank in (0, 1):
        run = parted(run, "ddp", rank, 1, loss=0.01, norm=1.3)
    assert judged(run, "loss_ddp").outcome == judged(run, "gradients_ddp").outcome == FAIL


def test_a_training_that_parts_from_itself_beyond_measure_allows_ranks_some_times_the_budget_alone():
    run = parted(healthy(), "one_in_turn", 0, 2, loss=3.0, norm=50.0)
    lost = judged(parted(run, "ddp", 1, 40, loss=0.1), "loss_ddp")
    assert (lost.outcome, lost.limit) == (FAIL, pytest.approx(0.1))
    leapt = judged(parted(run, "ddp", 1, 5, norm=1.5), "gradients_ddp")
    assert (leapt.outcome, leapt.limit) == (FAIL, pytest.approx(1.4))


def test_a_norm_between_its_budget_and_the_rounded_one_that_is_shown_passes():
    run = parted(healthy(), "one_in_turn", 0, 30, norm=1.0740612)
    for rank in (0, 1):
        run = parted(run, "ddp", rank, 30, norm=1 / 1.2221)
    gate = judged(run, "gradients_ddp")
    assert (gate.limit, gate.measured, gate.outcome) == (1.222, 1.222, PASS)


def elsewhere(moved):
    return {"hash": "elsewhere", "parts": [{"norm": 20.0, "projections": [1.0 + moved, 2.0, 3.0, 4.0]}] * 2}


@pytest.mark.parametrize(("moved", "outcome"), [(0.019, WARN), (0.03, FAIL)])
def test_parameters_of_ranks_are_held_to_the_dtype_where_one_gpu_stays_with_itself(moved, outcome):
    digests = [{**own, "hash": "in turn"} for own in healthy().fact("one", "digests")]
    run = with_case(healthy(), "one_in_turn", digests=digests)
    assert judged(moved_by(run, moved), "parameters_ddp").outcome == outcome


@pytest.mark.parametrize(("moved", "outcome"), [(0.045, WARN), (0.095, FAIL)])
def test_parameters_of_ranks_may_part_as_those_of_one_gpu_do(moved, outcome):
    digests = [
        {**own, **elsewhere(0.016 * (own["step"] >= 40)), "hash": "in turn"} for own in healthy().fact("one", "digests")
    ]
    run = with_case(healthy(), "one_in_turn", digests=digests)
    assert judged(moved_by(run, moved), "parameters_ddp").outcome == outcome
    assert judged(moved_by(run, moved, step=30), "parameters_ddp").outcome == FAIL


def moved_by(run, moved, step=50):
    for rank in (0, 1):
        run = with_digest(run, "ddp", rank, step, **elsewhere(moved))
    return run


def test_parameters_that_are_no_numbers_are_no_ones():
    assert judged(moved_by(healthy(), float("nan")), "parameters_ddp").outcome == FAIL


def test_it_is_said_how_often_ranks_had_the_bits_of_one_gpu_with_their_shares_in_turn():
    run = healthy()
    assert judged(run, "parameters_ddp").detail.endswith("; 6 times the bits of one GPU with the shares in turn")
    assert "in turn" not in judged(healthy(gpus=1), "parameters_ddp").detail


@pytest.mark.parametrize(
    ("profile", "given", "outcome"),
    [
        ("laptop", {}, WARN),
        ("laptop", {"gpus": 4, "batch": 4}, PASS),
        ("laptop", {"dtype": "float16"}, PASS),
        ("checklist", {"backend": "fused"}, WARN),
        ("checklist", {"backend": "masked"}, PASS),
    ],
)
def test_two_ranks_that_never_have_the_bits_of_one_gpu_are_a_warning(profile, given, outcome):
    run = healthy(profile, **given)
    other = [{**own, "hash": "other"} for own in run.fact("one_in_turn", "digests")]
    gate = judged(with_case(run, "one_in_turn", digests=other), "parameters_ddp")
    assert (gate.outcome, "; 0 times the bits" in gate.detail) == (outcome, True)


@pytest.mark.parametrize(
    ("profile", "backend", "outcome"),
    [("laptop", "masked", FAIL), ("checklist", "fused", FAIL), ("checklist", "masked", PASS)],
)
def test_ranks_that_leave_the_bits_that_they_had_fail(profile, backend, outcome):
    run = healthy(profile, backend=backend)
    other = [{**own, "hash": "other"} if own["step"] > 20 else own for own in run.fact("one_in_turn", "digests")]
    gate = judged(with_case(run, "one_in_turn", digests=other), "parameters_fsdp2")
    said = "after step 20 the bits of one GPU with the shares in turn, after step 30 others"
    assert (gate.outcome, gate.detail == said) == (outcome, outcome == FAIL)
