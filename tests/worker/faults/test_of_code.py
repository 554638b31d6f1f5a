"""Each fault of the code does what the table says."""

import pytest
import torch

from nsa_lib.contract.faults import FAULT_STEP
from nsa_lib.subject import attention, training
from nsa_lib.subject.config import NSAConfig
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.profiling import executed_routes
from tests.subject.test_config import CASE
from tests.worker.faults.planted import model, planted, train


def test_a_nan_is_in_the_loss_and_an_infinity_in_a_gradient_alone(tmp_path):
    result, steps = train(tmp_path, "nan_loss")
    assert (result["status"], len(steps)) == ("nan", FAULT_STEP)
    assert result["reason"].startswith(f"loss is nan at step {FAULT_STEP}")
    result, steps = train(tmp_path, "inf_gradient")
    assert result["reason"].startswith(f"grad_norm is inf at step {FAULT_STEP}")
    assert steps[-1]["loss"] - steps[-1]["loss"] == 0


def test_hooks_add_operators_and_no_memory(tmp_path):
    result, steps = train(tmp_path, "operator_growth", steps=20, profile_operators=True)
    early, late = (sum(row["count"] for row in result["operators"][when].values()) for when in ("early", "late"))
    assert late == early + 2 * 9, "from the 11th step to the 20th a hook more in each, and its backward"
    assert steps[19]["peak_alloc_mib"] == pytest.approx(steps[10]["peak_alloc_mib"], rel=0.001)


def test_growing_sequences_raise_the_peak(tmp_path):
    _, steps = train(tmp_path, "growing_shapes", steps=20)
    assert steps[19]["peak_alloc_mib"] > 1.1 * steps[9]["peak_alloc_mib"]


@pytest.mark.parametrize(("asked", "ran"), [("masked", "gather"), ("gather", "masked"), ("packed", "gather")])
def test_another_backend_runs_than_the_one_asked_for(tmp_path, asked, ran):
    result, _ = train(tmp_path, "wrong_backend", model=model(asked))
    assert result["routes"] == [ran]


def test_every_query_reads_the_first_token_by_the_route_asked_for(tmp_path):
    q, k, v = torch.randn(1, 4, 8, 8), torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    with planted("first_key", model=model("packed")):
        out = attention.selected_attention(
            q, k, v, torch.zeros(1, 2, 8, 1, dtype=torch.int64), l_sel=4, backend="packed"
        )
    assert torch.equal(out[:, 3], v[:, 1, :1].expand(1, 8, 8))
    result, _ = train(tmp_path, "first_key", model=model("packed"))
    assert result["routes"] == ["packed"]


FUSED_SIZES = NSAConfig(dim=32, heads=4, groups=2, d_k=8, d_v=8, l=16, d=16, l_sel=16, n_sel=4, w=16)


def of_fused(fault):
    """What a layer with `fused` gives, selects and enters with a fault planted, and without."""
    layer, x = attention.NSAttention(FUSED_SIZES, "fused"), torch.randn(1, 150, 32)
    found = []
    for one in ("none", fault):
        with planted(one, model=model("fused", nsa=FUSED_SIZES)):
            output = []
            routes = executed_routes(lambda: output.append(layer(x).detach()))  # noqa: B023
            found.append((*output, layer.select(x), routes))
    return found


@pytest.mark.parametrize(
    ("fault", "moves", "selects_otherwise", "route"),
    [
        ("none", False, False, "fused"),
        ("wrong_backend", False, False, "gather"),
        ("first_key", True, False, "fused"),
        ("future_leak", True, True, "fused"),
    ],
)
def test_a_fault_of_a_backend_reaches_a_layer_with_fused(plain_fused, fault, moves, selects_otherwise, route):
    (right, chosen, _), (wrong, otherwise, ran) = of_fused(fault)
    assert torch.allclose(right, wrong, atol=1e-5) != moves
    assert torch.equal(chosen, otherwise) != selects_otherwise
    assert ran == {route}


def of_fused_in_force():
    return attention.BACKENDS["fused"], attention.fused.chosen_blocks, attention.NSAttention.all_at_once


@pytest.mark.parametrize("fault", ["wrong_backend", "first_key", "future_leak"])
def test_a_fault_of_fused_is_in_force_inside_its_context_alone(fault):
    before = of_fused_in_force()
    with planted(fault, device="cuda", model=model("fused")):
        assert of_fused_in_force() != before
    assert of_fused_in_force() == before


@pytest.mark.parametrize("fault", ["wrong_backend", "first_key"])
def test_a_fault_of_another_backend_leaves_fused_as_it_is(fault):
    before = of_fused_in_force()
    with planted(fault, model=model("masked")):
        assert of_fused_in_force() == before


@pytest.mark.parametrize("fault", ["none", "future_leak"])
def test_a_future_leak_lets_later_scores_choose(fault):
    scores = torch.rand(1, 1, 64, 16)
    other = scores.clone()
    other[:, :, 48:, 5] += 100.0
    with planted(fault):
        before, after = (attention.select_blocks(s, l_sel=4, n_sel=4)[:, :, :48] for s in (scores, other))
    assert torch.equal(before, after) == (fault == "none")


def test_a_layer_bound_late_gets_the_gradients_of_all(tmp_path):
    with pytest.raises(RuntimeError, match=r"no gradient reached blocks\.0\."):
        train(tmp_path, "late_binding", model=model(layers=2))
    result, _ = train(tmp_path, "late_binding", model=model(layers=2), grad_checkpointing=False)
    assert result["status"] == "ok", "nothing is computed again, so nothing can be bound late"


def test_a_dead_parameter_has_a_gradient_of_zeros():
    tiny = TinyLM(CASE.model)
    with planted("dead_parameter"):
        training.backward_step(tiny, torch.randint(64, (1, 65)))
    dead = [name for name, parameter in tiny.named_parameters() if not parameter.grad.any()]
    assert dead == ["blocks.0.attention.key_cmp.weight"]


def test_unshifted_labels_reward_the_token_that_was_given():
    tokens = torch.randint(16, (1, 65))
    hidden, head = torch.nn.functional.one_hot(tokens[:, :-1], 16).float(), 50 * torch.eye(16)
    shifted = training.chunked_cross_entropy(hidden, head, tokens[:, 1:])
    with planted("unshifted_labels"):
        unshifted = training.chunked_cross_entropy(hidden, head, tokens[:, 1:])
    assert shifted > 30
    assert unshifted <= 50 / 64
