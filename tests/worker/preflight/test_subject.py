"""Every check of the preflight holds on the attention as it is, and fails on one with the fault that it looks for."""

import math
from dataclasses import replace

import pytest
import torch

from nsa_lib.contract.agenda import check_names
from nsa_lib.contract.case import CaseConfig
from nsa_lib.contract.heartbeat import Heartbeat, HeartbeatReader
from nsa_lib.subject import attention, training
from nsa_lib.subject.attention import module
from nsa_lib.subject.config import BACKEND_NAMES, PLAIN_BACKENDS, ModelConfig, NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import faults, preflight
from nsa_lib.worker.preflight import GROUPS, copying, learning, run_checks, subject_checks
from nsa_lib.worker.preflight.against_reference import share_given_away
from nsa_lib.worker.preflight.finding import Finding, at_least, at_most, within_budget
from nsa_lib.worker.preflight.subject import judged_sizes, relative_error
from tests import stand_in

CHECKS = check_names(PLAIN_BACKENDS)

NSA = NSAConfig(dim=32, heads=4, groups=2, d_k=16, d_v=8, l=8, d=8, l_sel=16, n_sel=5, w=24)

CASE = CaseConfig(
    case_id="subject", work="checks", model=ModelConfig(nsa=NSA, layers=2, vocab=64), seq_len=128, batch=1, steps=21,
    dtype="float32", grad_checkpointing=True, lr=1e-3, seed=0, device="cpu",
)  # fmt: skip


def found(name, fault="none", **changes):
    """What one check of the subject finds with a fault planted."""
    case = replace(CASE, fault=fault, **changes)
    with faults.planted(case):
        return subject_checks(case, {}, lambda: None)[name]()


@pytest.mark.parametrize("name", CHECKS["subject"])
def test_a_check_holds_on_the_attention_as_it_is(name):
    finding = found(name)
    assert finding.holds, finding


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", ["selected_packed", "attention_gather", "selection", "rope_distance", "checkpointing"])
def test_the_budget_is_that_of_the_dtype(name, dtype):
    finding = found(name, dtype=dtype)
    assert finding.holds, finding
    if name != "selection":
        assert finding.limit < (1e-9 if dtype == "float64" else 0.2)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("selected_masked", "first_key"),
        ("attention_masked", "first_key"),
        ("past_slc_masked", "first_key"),
        ("route_masked", "wrong_backend"),
        ("selection", "future_leak"),
        ("future_masked", "future_leak"),
        ("gradients", "dead_parameter"),
        ("checkpointing", "late_binding"),
    ],
)
def test_a_seeded_fault_is_found(name, fault):
    finding = found(name, fault)
    assert not finding.holds, finding


OF_FUSED = [name for name in check_names()["subject"] if name not in CHECKS["subject"]]


def of_fused(name, fault="none"):
    return found(name, fault, backends=BACKEND_NAMES, model=replace(CASE.model, backend="fused"))


@pytest.mark.parametrize("name", [*OF_FUSED, "gradients", "checkpointing"])
def test_a_check_of_fused_holds_on_what_computes_the_same(plain_fused, name):
    finding = of_fused(name)
    assert finding.holds, finding


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("selected_fused", "first_key"),
        ("attention_fused", "first_key"),
        ("past_slc_fused", "first_key"),
        ("route_fused", "wrong_backend"),
        ("selection_fused", "future_leak"),
        ("future_fused", "future_leak"),
        ("gradients", "dead_parameter"),
        ("checkpointing", "late_binding"),
    ],
)
def test_a_seeded_fault_is_found_with_fused(plain_fused, name, fault):
    finding = of_fused(name, fault)
    assert not finding.holds, finding


@pytest.mark.parametrize("w", [23, 25])
def test_a_window_of_another_width_is_found_in_fused_alone(plain_fused, monkeypatch, w):
    original = stand_in.sliding_attention
    monkeypatch.setattr(stand_in, "sliding_attention", lambda *x, **o: original(*x, **{**o, "w": w}))
    assert not of_fused("past_win_fused").holds
    assert of_fused("past_win").holds


def test_compressed_blocks_seen_too_early_are_found_in_fused_alone(plain_fused, monkeypatch):
    original = stand_in.compressed_attention
    monkeypatch.setattr(stand_in, "compressed_attention", lambda *x, l, **o: original(*x, l=l - 1, **o))
    assert not of_fused("past_cmp_fused").holds
    assert of_fused("past_cmp").holds


def test_fused_is_judged_by_the_blocks_that_it_chose_itself(plain_fused, monkeypatch):
    """Rounding lets it choose others than the plain backends do; its attention is right all the same."""

    def nearest(q, k_cmp, *, config):
        l_sel, n_sel = config.l_sel, config.n_sel
        own = torch.arange(q.shape[2])[:, None] // l_sel - torch.arange(n_sel).flip(0)
        blocks = torch.where(own < 0, -1, own).sort(descending=True).values
        kept = (blocks >= 0).sum(-1, keepdim=True)
        blocks = torch.where(blocks == (own[:, -1:] - n_sel + 1).clamp(min=0), 0, blocks).masked_fill(blocks < 0, 99)
        blocks = blocks.sort().values.masked_fill(torch.arange(n_sel) >= kept, -1)
        return blocks.int().expand(1, k_cmp.shape[1], -1, -1)

    monkeypatch.setattr(plain_fused, "chosen_blocks", nearest)
    assert of_fused("attention_fused").holds
    assert of_fused("attention_masked").holds
    assert not of_fused("selection_fused").holds


SCORES = torch.tensor([0.9, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64).expand(1, 1, 6, 6)


@pytest.mark.parametrize(
    ("last_row", "share"),
    [
        ([0, 1, 4, 5], 0.0),
        ([0, 2, 4, 5], 0.2),
        ([0, 3, 4, 5], 0.4),
        ([1, 2, 4, 5], math.inf),
        ([0, 1, 2, 5], math.inf),
        ([0, 4, 5, -1], math.inf),
        ([0, 1, 5, 4], math.inf),
        ([0, 4, 4, 5], math.inf),
        ([0, 1, 4, 6], math.inf),
        ([-1, 0, 4, 5], math.inf),
    ],
)
def test_a_choice_is_judged_by_what_it_gives_away(last_row, share):
    chosen = attention.select_blocks(SCORES, l_sel=1, n_sel=4)
    chosen[..., -1, :] = torch.tensor(last_row)
    given_away = share_given_away(chosen, SCORES, l_sel=1)
    assert given_away[0, 0].tolist() == pytest.approx([0, 0, 0, 0, 0, share])


def test_a_block_of_the_future_gives_everything_away():
    chosen = attention.select_blocks(SCORES, l_sel=1, n_sel=4)
    chosen[0, 0, 4] = torch.tensor([0, 3, 4, 5])
    assert share_given_away(chosen, SCORES, l_sel=1)[0, 0].tolist() == [0, 0, 0, 0, math.inf, 0]


@pytest.mark.parametrize(("fault", "learns"), [("none", True), ("first_key", False)])
def test_the_selected_branch_of_fused_learns_to_copy_in_blocks_that_its_kernels_take(
    plain_fused, monkeypatch, fault, learns
):
    monkeypatch.setattr(copying, "STEPS", 60)
    blocks, right = set(), module.NSAttention.forward

    def seen(layer, x):
        blocks.add(layer.config.l_sel)
        return right(layer, x)

    monkeypatch.setattr(module.NSAttention, "forward", seen)
    assert learned("copy_slc", fault, model=replace(CASE.model, backend="fused")).holds == learns
    assert blocks == {16}


def test_a_parameter_without_a_gradient_is_named():
    assert "blocks.0.attention.key_cmp.weight" in found("gradients", "dead_parameter").detail


def test_rotation_by_another_position_is_found(monkeypatch):
    original = module.apply_rope
    monkeypatch.setattr(
        module, "apply_rope", lambda x, **more: original(x, **more) * (1 + torch.arange(x.shape[2]))[:, None]
    )
    assert not found("rope_distance").holds


def test_no_rotation_at_all_is_found(monkeypatch):
    monkeypatch.setattr(module, "apply_rope", lambda x, **more: x)
    assert not found("rope_distance").holds


@pytest.mark.parametrize("w", [23, 25])
def test_a_window_of_another_width_is_found(monkeypatch, w):
    original = module.sliding_attention
    monkeypatch.setattr(module, "sliding_attention", lambda *parts, **more: original(*parts, **{**more, "w": w}))
    assert not found("past_win").holds


def test_compression_that_leaves_out_the_end_of_a_block_is_found(monkeypatch):
    original = module.compress

    def compress(x, phi, *, l, d):
        return original(x * (torch.arange(x.shape[2]) % d < d - 1)[:, None], phi, l=l, d=d)

    monkeypatch.setattr(module, "compress", compress)
    assert not found("past_cmp").holds


def test_attention_that_sees_the_next_token_is_found(monkeypatch):
    original = module.sliding_attention
    monkeypatch.setattr(
        module, "sliding_attention", lambda q, k, v, w: original(q, k.roll(-1, dims=2), v.roll(-1, dims=2), w=w)
    )
    assert not found("future_gather").holds
    assert not found("past_win").holds


def test_a_gradient_that_is_wrong_alone_is_found(monkeypatch):
    """The output is right, so that only a comparison of gradients sees it: what cuDNN did on an H200."""

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.01

    original = attention.BACKENDS["packed"]

    def packed(q, k, v, *more, **named):
        return original(q, Scaled.apply(k), v, *more, **named)

    monkeypatch.setitem(attention.BACKENDS, "packed", packed)
    assert not found("selected_packed").holds
    assert not found("attention_packed").holds
    assert found("attention_gather").holds


def test_the_judged_layer_keeps_widths_and_share_and_scores_decide():
    small, length = judged_sizes(NSA)
    assert (small.d_k, small.d_v, small.l, small.d, small.l_sel, small.phi) == (16, 8, 8, 8, 16, "mlp")
    assert small.heads // small.groups == NSA.heads // NSA.groups
    assert length // small.l_sel > small.n_sel
    assert length % small.l_sel
    assert length % small.d


def learned(task, fault="none", **changes):
    case = replace(CASE, case_id="copying", fault=fault, **changes)
    with faults.planted(case):
        return copying.copying_checks(case, {}, lambda: None)[task]()


@pytest.mark.parametrize("task", CHECKS["copying"])
def test_each_branch_alone_learns_to_copy(task, monkeypatch):
    monkeypatch.setattr(copying, "STEPS", 120)
    assert learned(task).holds


def first_block(p_cmp, v_cmp):
    return p_cmp.sum(-1, keepdim=True) * v_cmp[:, :, :1]


@pytest.mark.parametrize(
    ("task", "name", "broken"),
    [
        ("copy_win", "sliding_attention", lambda q, k, v, w: v.roll(w, dims=2)),
        ("copy_cmp", "mix_compressed", first_block),
    ],
)
def test_a_branch_that_reads_elsewhere_does_not_learn_to_copy(monkeypatch, task, name, broken):
    monkeypatch.setattr(copying, "STEPS", 60)
    monkeypatch.setattr(module, name, broken)
    assert not learned(task).holds


def test_a_selected_branch_that_reads_the_first_token_alone_does_not_learn_to_copy(monkeypatch):
    monkeypatch.setattr(copying, "STEPS", 60)
    assert not learned("copy_slc", "first_key").holds


@pytest.mark.parametrize(("task", "others"), [("slc", 2), ("cmp", 0), ("win", 1)])
def test_what_is_to_be_copied_lies_where_the_branch_reads_and_another_where_it_does_not(task, others):
    tokens = copying.SEQUENCES[task](500, torch.Generator().manual_seed(1))
    asked, answer = tokens[:, :-1], tokens[:, -1]
    assert ((answer >= 1) & (answer <= copying.COPIED)).all()
    assert (asked[:, -1] == copying.QUESTION).all()
    assert (asked[:, 0] == 0).all(), "attention that reads the first token alone must not find it"
    blocks = (asked == answer[:, None]).unflatten(1, (-1, copying.BLOCK)).any(-1)
    last = blocks.shape[1] - 1
    if task == "slc":
        assert (blocks[:, 0] | blocks[:, last - 1]).all()
        assert ((asked[:, copying.BLOCK : (last - 1) * copying.BLOCK] > 0).sum(1) == others).all()
    if task == "cmp":
        whole = (asked == answer[:, None]).unflatten(1, (-1, copying.BLOCK)).sum(-1)
        assert (whole.max(1).values >= copying.BLOCK - 1).all()
    if task == "win":
        assert (asked[:, -copying.WINDOW :] == answer[:, None]).any(1).all()
        assert ((asked[:, : -2 * copying.WINDOW] > 0).sum(1) == others).all()


def trained(name, fault="none", **changes):
    case = replace(CASE, case_id="learning", fault=fault, **changes)
    facts = {}
    with faults.planted(case):
        checks = learning.learning_checks(case, facts, lambda: None)
        findings = {one: checks[one]() for one in CHECKS["learning"] if name in (one, "all")}
    return findings if name == "all" else findings[name], facts


def test_the_model_learns_what_it_should_and_keeps_what_it_looks_at():
    findings, facts = trained("all")
    assert all(finding.holds for finding in findings.values()), findings
    shares = torch.tensor(facts["attention_map"]["branch_mass"])
    assert shares.shape == (2, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_labels_that_the_model_sees_are_found(monkeypatch):
    finding, _ = trained("loss_fresh_tokens", "unshifted_labels")
    assert not finding.holds


def test_a_loss_that_does_not_fall_is_found(monkeypatch):
    monkeypatch.setattr(
        learning.training, "make_optimizer", lambda model, lr: torch.optim.SGD(model.parameters(), lr=0.0)
    )
    assert not trained("loss_fixed_batch")[0].holds


def test_branch_gates_that_are_cut_off_are_found(monkeypatch):
    original = module.NSAttention._project

    def project(layer, x):
        return {n: part.detach() if n == "branch_gates" else part for n, part in original(layer, x).items()}

    monkeypatch.setattr(module.NSAttention, "_project", project)
    trained_model = learning.Training(replace(CASE, case_id="learning"))
    optimizer = torch.optim.SGD(trained_model.model.parameters(), lr=0.1)
    for _ in range(3):
        trained_model.model.zero_grad()
        tokens = trained_model.tokens
        loss = training.chunked_cross_entropy(
            trained_model.model.hidden(tokens[:, :-1]), trained_model.model.head.weight, tokens[:, 1:]
        )
        loss.backward()
        optimizer.step()
    assert not learning.gates_move(trained_model).holds


def test_a_branch_alone_gives_its_share_of_the_output():
    layer = module.NSAttention(NSA).double()
    x = torch.randn(1, 40, NSA.dim, dtype=torch.float64)
    parts = [learning.branch_alone(layer, branch) for branch in NSA.branches]
    torch.testing.assert_close(sum(part(x) for part in parts), layer(x))


@pytest.mark.parametrize("group", CHECKS)
def test_a_group_makes_the_checks_that_are_named_and_no_others(group):
    assert set(GROUPS[group](replace(CASE, case_id=group), {}, lambda: None)) == set(CHECKS[group])


def test_there_is_a_check_of_every_backend():
    for kind in ("selected", "attention", "future", "past_slc", "route"):
        assert {f"{kind}_{backend}" for backend in BACKEND_NAMES} <= set(check_names()["subject"])


def test_a_case_records_its_checks_in_order_with_a_beat_each(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_names", lambda backends: {"subject": ("route_masked", "gradients")})
    heartbeat, facts = Heartbeat(tmp_path / "heartbeat.jsonl"), {}
    run_checks(CASE, heartbeat, facts)
    assert [check["name"] for check in facts["checks"]] == ["route_masked", "gradients"]
    beats = HeartbeatReader(tmp_path / "heartbeat.jsonl").read()
    assert [beat["step"] for beat in beats] == [1, 2]


def test_checks_made_before_a_crash_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_names", lambda backends: {"subject": ("route_masked", "gradients")})
    monkeypatch.setattr(TinyLM, "hidden", lambda model, tokens: 1 / 0)
    facts = {}
    with pytest.raises(ZeroDivisionError):
        run_checks(CASE, Heartbeat(tmp_path / "heartbeat.jsonl"), facts)
    assert [check["name"] for check in facts["checks"]] == ["route_masked"]


NAN = math.nan


def test_a_figure_that_is_not_a_number_never_holds():
    assert not at_most(NAN, 1.0, "", "").holds
    assert not at_least(NAN, 1.0, "", "").holds
    assert not within_budget({"a": NAN, "b": 0.1}, {"a": 1.0, "b": 1.0}).holds
    assert math.isnan(relative_error(torch.tensor([1.0, NAN]), torch.ones(2)))


def test_the_error_that_uses_most_of_its_budget_is_the_one_shown():
    finding = within_budget({"output": 0.5, "dq": 0.2}, {"output": 1.0, "dq": 0.1})
    assert (finding.measured, finding.limit, finding.holds) == (0.2, 0.1, False)
    assert finding.detail.startswith("dq uses 200 %")


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_what_json_cannot_hold_becomes_text(value):
    assert Finding(value, 1.0, "", "", False).record("x")["measured"] == str(value)
