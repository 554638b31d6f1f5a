"""Sample, recording, rounding, choice and the update's rule, each by itself."""

import random

import pytest
import torch

from nsa_lib.subject import training
from nsa_lib.subject.attention import reference
from nsa_lib.subject.attention.tables import own_tables
from nsa_lib.subject.config import NSAConfig
from nsa_lib.worker import attestation
from nsa_lib.worker.attestation.choice import judge_choice, unpacked
from nsa_lib.worker.attestation.records import Entries
from nsa_lib.worker.attestation.rounding import compare
from nsa_lib.worker.attestation.sample import MOST_POSITIONS, positions, sample
from nsa_lib.worker.attestation.train_step import judge_gradients
from nsa_lib.worker.attestation.update import AdamW, judge_update
from nsa_lib.worker.devices import DEVICES
from tests.worker.attestation.attested import CHUNK, LENGTH, LR, config, trainee

CHECKLIST = dict(dim=768, heads=12, groups=12, d_k=64, d_v=64, l=32, d=16, l_sel=64, n_sel=16, w=512)


@pytest.mark.parametrize("length", [1, 2, 7, 130, 512, 2048, 65_536])
def test_positions_hold_ends_and_edges(length):
    c = NSAConfig(**CHECKLIST)
    found = positions(c, length, random.Random(0))
    edges = {0, 1, 63, 64, c.w - 1, c.w, c.w + 1, c.n_sel * c.l_sel - 1, c.n_sel * c.l_sel, length - 2, length - 1}
    assert {t for t in edges if 0 <= t < length} <= set(found)
    assert list(found) == sorted(set(found))
    assert all(0 <= t < length for t in found)
    assert len(found) <= MOST_POSITIONS * 4 / 3
    assert len(found) >= min(length, MOST_POSITIONS // 2)


def test_positions_far_from_every_edge_are_drawn_from_everywhere():
    found = positions(NSAConfig(**CHECKLIST), 65_536, random.Random(0))
    quarters = [sum(t // 16_384 == quarter for t in found) for quarter in range(4)]
    assert min(quarters) > 20
    assert positions(NSAConfig(**CHECKLIST), 65_536, random.Random(1)) != found


def test_layers_are_all_where_it_is_cheap_and_hold_both_ends_where_it_is_not():
    def of(length, seed=0, layers=12):
        return sample(config(layers=layers, **CHECKLIST), batch=1, length=length, seed=seed)

    assert of(2048).layers == of(2048).gradient_layers == tuple(range(12))
    long = of(65_536)
    assert {0, 11} < set(long.layers)
    assert len(long.layers) == 3
    assert len(long.gradient_layers) == 1
    assert set(long.gradient_layers) < set(long.layers)
    assert len({of(65_536, seed).gradient_layers for seed in range(20)}) > 3
    assert of(65_536, layers=1).layers == (0,)
    assert of(65_536) == of(65_536)


def test_a_sample_says_what_was_compared_in_a_line():
    long = sample(config(layers=12, **CHECKLIST), batch=2, length=65_536, seed=0)
    assert long.said.startswith("layers 1, ")
    assert "length 65,536; gradients of layers" in long.said
    assert sample(config(), batch=1, length=64, seed=0).said == "all 2 layers, 64 of 64 rows, length 64"


def step_bits(recorded):
    """Two steps' parameters and losses, the second recorded or not."""
    model, optimizer = trainee(config())
    tokens = torch.randint(64, (1, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    losses = [training.train_step(model, optimizer, tokens, loss_chunk=CHUNK).loss]
    if recorded:
        with attestation.recording(model, tokens, sample(config(), batch=1, length=LENGTH, seed=0), optimizer):
            losses.append(training.train_step(model, optimizer, tokens, loss_chunk=CHUNK).loss)
    else:
        losses.append(training.train_step(model, optimizer, tokens, loss_chunk=CHUNK).loss)
    return losses, [p.detach() for p in model.parameters()]


def test_recording_changes_no_bit():
    for found, expected in zip(step_bits(recorded=True), step_bits(recorded=False), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_recording_leaves_nothing_behind():
    model, optimizer = trainee(config())
    tokens = torch.randint(64, (1, LENGTH + 1))
    one = sample(config(), batch=1, length=LENGTH, seed=0)
    with (
        pytest.raises(RuntimeError, match="in the step"),
        attestation.recording(model, tokens, one, optimizer),
    ):
        raise RuntimeError("in the step")
    attention = model.blocks[0].attention
    assert attention.observe is None
    assert not attention._forward_hooks
    assert not attention._forward_pre_hooks
    assert not model.norm._forward_hooks
    assert not optimizer._optimizer_step_pre_hooks


def metered(recorded):
    """What the CPU's meter reads of a step."""
    model, optimizer = trainee(config())
    tokens = torch.randint(64, (1, LENGTH + 1))
    with own_tables(), DEVICES["cpu"].meter("") as meter:
        meter.track(model)
        for step in range(2):
            meter.begin_step()
            if recorded and step == 1:
                one = sample(config(), batch=1, length=LENGTH, seed=0)
                with attestation.recording(model, tokens, one, optimizer):
                    training.train_step(model, optimizer, tokens, mark=meter.mark, loss_chunk=CHUNK)
            else:
                training.train_step(model, optimizer, tokens, mark=meter.mark, loss_chunk=CHUNK)
            read = meter.read()
        return read, dict(meter.operator_counts)


def test_the_meter_of_a_recorded_step_reads_the_same():
    assert metered(recorded=True) == metered(recorded=False)


@pytest.mark.parametrize("grad_checkpointing", [True, False])
def test_a_layer_runs_as_often_as_checkpointing_asks(grad_checkpointing):
    model, optimizer = trainee(config(), grad_checkpointing=grad_checkpointing)
    tokens = torch.randint(64, (1, LENGTH + 1))
    one = sample(config(), batch=1, length=LENGTH, seed=0)
    with attestation.recording(model, tokens, one, optimizer) as record:
        training.train_step(model, optimizer, tokens, loss_chunk=CHUNK)
    assert [layer.passes for layer in record.layers.values()] == [1 + grad_checkpointing] * 2


def test_a_compiled_layer_that_shows_nothing_is_not_compared():
    model, optimizer = trainee(config())
    model.is_compiled = True  # as `compile_blocks` leaves it
    tokens = torch.randint(64, (1, LENGTH + 1))
    one = sample(config(), batch=1, length=LENGTH, seed=0)
    with attestation.recording(model, tokens, one, optimizer) as record:
        loss = training.train_step(model, optimizer, tokens, loss_chunk=CHUNK).loss.item()
    found = attestation.judge(record, loss, loss_chunk=CHUNK, rule=AdamW(lr=LR))
    assert found.layers == []
    assert {part.area for part in found.not_compared} == {"attention", "choice", "backward"}
    assert all("compiled" in part.why_not for part in found.not_compared)
    assert not found.wrong()["train_step"]


def test_what_a_graph_holds_is_judged_as_what_is_recorded():
    model, optimizer = trainee(config())
    tokens = torch.randint(64, (1, LENGTH + 1))
    one = sample(config(), batch=1, length=LENGTH, seed=0)
    with attestation.holding(model, one) as held, attestation.recording(model, tokens, one, optimizer, held) as record:
        loss = training.train_step(model, optimizer, tokens, loss_chunk=CHUNK).loss.item()
    found = attestation.judge(record, loss, loss_chunk=CHUNK, rule=AdamW(lr=LR))
    assert not any(found.wrong().values())
    assert not found.not_compared
    assert [layer.passes for layer in record.layers.values()] == [2, 2]
    held.layers[1].shown["win"] *= 1.5
    with attestation.recording(model, tokens, one, optimizer, held) as record:
        training.train_step(model, optimizer, tokens, loss_chunk=CHUNK)
    found = attestation.judge(record, loss, loss_chunk=CHUNK, rule=AdamW(lr=LR))
    assert "layer 2 win" in found.wrong()["attention"]


def compared(found, exact, off=1e-3, dtype=torch.bfloat16):
    return compare(found, exact, exact * (1 + off), dtype=dtype, terms=10)


def test_a_single_wrong_row_is_found_among_thousands():
    exact = torch.randn(2, 2000, 32, dtype=torch.float64)
    found = exact.clone()
    found[1, 1234] *= 1.03
    assert compared(exact, exact).ok
    result = compared(found, exact)
    assert not result.ok
    assert result.at == (1, 1234)
    assert result.error == pytest.approx(0.03)
    assert (result.rows, result.telling) == (4000, 4000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_factor_that_no_row_shows_is_found_over_all_rows(dtype):
    exact = torch.randn(2, 180, 64, dtype=torch.float64)
    rounded = exact.to(dtype).double()
    right = compare(rounded, exact, (exact * 1.0001).to(dtype), dtype=dtype, terms=10)
    assert right.ok
    assert abs(right.factor - 1) < 0.2 * right.factor_allowed
    off = 2.5 * torch.finfo(dtype).eps / 2
    wrong = compare(rounded * (1 + off), exact, exact.to(dtype), dtype=dtype, terms=10)
    assert wrong.ratio < 1
    assert not wrong.ok
    assert wrong.said.startswith("all rows together are by a factor of")


def test_zeros_and_other_rows_are_never_within_what_is_allowed():
    exact = torch.randn(1, 50, 32, dtype=torch.float64)
    assert not compared(torch.zeros_like(exact), exact).ok
    assert not compared(exact.roll(1, dims=1), exact).ok


def test_a_row_of_zeros_allows_nothing_else():
    exact = torch.zeros(1, 3, 32, dtype=torch.float64)
    assert compared(exact, exact).ok
    found = exact.clone()
    found[0, 1, 0] = 1e-6
    assert not compared(found, exact).ok


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_wrong(value):
    exact = torch.randn(1, 5, 32, dtype=torch.float64)
    found = exact.clone()
    found[0, 2, 3] = value
    result = compared(found, exact)
    assert not result.ok
    assert result.ratio is None
    assert "not finite at (0, 2)" in result.said


@pytest.mark.parametrize("entries", [1, 3, 7])
def test_narrow_rows_are_no_false_alarm_and_a_wrong_one_is_found(entries):
    exact = torch.ones(2, 2000, entries, dtype=torch.float64)
    draws = (1e-3 * torch.randn(exact.shape, dtype=torch.float64) for _ in range(2))
    found, modelled = (exact + draw for draw in draws)
    assert compare(found, exact, modelled, dtype=torch.float32, terms=1).ok
    found[1, 1234] *= 1.2
    result = compare(found, exact, modelled, dtype=torch.float32, terms=1)
    assert not result.ok
    assert result.at[0] == 1
    assert 1234 - 32 < result.at[1] <= 1234


def test_a_result_below_its_rounding_tells_nothing():
    exact = torch.randn(1, 5, 32, dtype=torch.float64)
    result = compare(exact * 0, exact, exact * 2, dtype=torch.float32, terms=1)
    assert result.ok
    assert result.telling == 0


def choice_of(chosen, scores, off=1e-4, backend="masked", length=200):
    c = NSAConfig(**CHECKLIST | dict(l_sel=16, l=16, n_sel=4))
    noise = 1 + off * torch.randn(scores.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return judge_choice(chosen, scores, scores * noise, range(length), c, backend)


@pytest.fixture
def scores():
    return torch.rand(1, 2, 200, 13, dtype=torch.float64) + 0.1


@pytest.fixture
def right(scores):
    return reference.select_blocks(scores, l_sel=16, n_sel=4)


def test_the_exact_choice_is_right(scores, right):
    found = choice_of(right, scores)
    assert found.ok
    assert (found.differ, found.given_away_percent, found.ratio) == (0, 0.0, 0.0)
    assert found.scored == 2 * (200 - 64)


def test_a_near_tie_may_go_either_way(scores, right):
    close = scores.clone()
    close[..., 4:9] = 0.05
    close[..., 3], close[..., 2] = 2.0, 2.0 + 1e-6
    swapped = close.clone()
    swapped[..., 2] = 1.999
    found = choice_of(reference.select_blocks(swapped, l_sel=16, n_sel=4), close)
    assert found.ok
    assert found.differ > 0


def test_the_worst_choice_is_wrong(scores):
    found = choice_of(reference.select_blocks(-scores, l_sel=16, n_sel=4), scores)
    assert not found.ok
    assert found.given_away_percent > 10


@pytest.mark.parametrize(
    ("fault", "spoil"),
    [
        ("the own block is missing", lambda row: row.where(row != 12, -1)),
        ("one twice", lambda row: torch.tensor([0, 5, 5, 12])),
        ("the future", lambda row: torch.tensor([0, 5, 11, 13])),
        ("not in order", lambda row: row.flip(0)),
        ("one too few", lambda row: torch.tensor([0, 11, 12, -1])),
        ("padding in front", lambda row: row.roll(1).index_fill(0, torch.tensor([0]), -1)),
    ],
)
def test_a_choice_that_breaks_a_rule_is_wrong(scores, right, fault, spoil):
    chosen = right.clone()
    chosen[0, 1, 199] = spoil(chosen[0, 1, 199])
    found = choice_of(chosen, scores)
    assert (found.broken, found.at) == (1, (0, 1, 199)), fault
    assert "break a rule" in found.said


def test_fused_may_take_leading_bits_for_equal(scores, right):
    close = scores.clone()
    close[..., 4:9] = 0.05
    close[..., 3], close[..., 2] = 2.0, 2.0 + 4e-5
    close[..., 1] = 0.05
    swapped = close.clone()
    swapped[..., 2] = 1.999
    chosen = reference.select_blocks(swapped, l_sel=16, n_sel=4)
    assert choice_of(chosen, close, off=0, backend="fused").ok
    assert not choice_of(chosen, close, off=0).ok


def test_bits_are_unpacked_to_blocks(right):
    c = NSAConfig(**CHECKLIST | dict(l_sel=16, l=16, n_sel=4))
    bits = torch.where(right >= 0, 1 << right.clamp(min=0), 0).sum(dim=-1).to(torch.int32)
    assert torch.equal(unpacked({"block_bits": bits}, c), right)
    high = torch.full((1, 1, 1), -(2**31) | 1, dtype=torch.int32)
    assert unpacked({"block_bits": high}, c).tolist() == [[[[0, 31, -1, -1]]]]
    assert unpacked({}, c) is None


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_rule_is_that_of_torch(dtype, fused):
    if not fused and dtype == torch.bfloat16:
        pytest.skip("without fused every operation of an update rounds to bfloat16")
    parameter = torch.nn.Parameter((0.02 * torch.randn(256)).to(dtype))
    optimizer = torch.optim.AdamW([parameter], lr=3e-3, fused=fused)

    def held():
        state = {name: value.clone() for name, value in optimizer.state[parameter].items()}
        return {"parameter": parameter.detach().clone()} | state

    for step in range(30):
        gradient = (torch.randn(256) * 10.0 ** torch.randint(-6, 3, (256,))).to(dtype)
        before = held()
        parameter.grad = gradient.clone()
        optimizer.step()
        after = held()
        entries = {"p": Entries((slice(None),), before, 256, gradient, after)}
        found = judge_update(entries, AdamW(lr=3e-3))
        assert found.ok, (step, found)
        assert found.moved > 25
        assert not judge_update(entries, AdamW(lr=2e-3)).ok
        assert not judge_update(entries, AdamW(lr=3e-3, betas=(0.9, 0.99))).ok


def test_gradients_of_every_kind_of_none_are_named():
    def entry(largest, trained=True):
        return Entries((), {"parameter": torch.ones(4)}, 4, largest_gradient=largest, trained=trained)

    found = judge_gradients(
        {"a": entry(1.0), "b": entry(None), "c": entry(float("nan")), "d": entry(0.0), "e": entry(None, trained=False)}
    )
    assert (found.parameters, found.missing, found.not_finite, found.zero, found.fixed) == (
        4, ("b",), ("c",), ("d",), ("e",),
    )  # fmt: skip
    assert not found.ok


def test_a_row_whose_own_draw_is_small_by_chance_is_allowed_what_the_median_row_loses():
    exact = torch.ones(50, 64, dtype=torch.float64)
    exact[3] = 0
    modelled = 1.02 * exact  # one rounding a row decides: all its entries are off alike
    modelled[7] = exact[7]
    told = {"dtype": torch.float32, "terms": 10}
    assert not compare(1.03 * exact, exact, modelled, **told).ok
    assert compare(1.03 * exact, exact, modelled, **told, pooled=True).ok
    assert not compare(1.1 * exact, exact, modelled, **told, pooled=True).ok
