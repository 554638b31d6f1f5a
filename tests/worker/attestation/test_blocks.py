"""What a model does around its attention is judged: an honest step passes in every dtype, a small wrong is named."""

from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from nsa_lib.subject import model as subject
from nsa_lib.subject import training
from nsa_lib.worker import attestation
from nsa_lib.worker.attestation.blocks import judge_blocks
from nsa_lib.worker.attestation.blocks_recording import GRAPHED, recording_blocks
from nsa_lib.worker.attestation.shown import show_always
from tests.worker.attestation.attested import CHUNK, LENGTH, config, trainee

FLOAT32 = torch.float32

pytestmark = [
    pytest.mark.filterwarnings("ignore:Profiler record function"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # Dynamo does it
]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    yield
    torch._dynamo.reset()


def found(*, dtype=FLOAT32, grad_checkpointing=True, spoil=lambda model: None, work="train", lose=None, **how):
    """Take a step of a model of three layers and judge its blocks."""
    model, optimizer = trainee(config(layers=3), dtype=dtype, grad_checkpointing=grad_checkpointing)
    tokens = torch.randint(64, (2, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    rows = attestation.sample(config(layers=3), batch=2, length=LENGTH, seed=0)
    training.train_step(model, optimizer, tokens, loss_chunk=CHUNK)
    spoil(model)
    optimizer = optimizer if work == "train" else None
    with recording_blocks(model, tokens, rows, optimizer, **how) as record:
        if optimizer is None:
            training.backward_step(model, tokens, loss_chunk=CHUNK)
        else:
            training.train_step(model, optimizer, tokens, loss_chunk=CHUNK)
    if lose is not None:
        del record.kept[1][lose]
    return judge_blocks(record)


def left_out(blocks):
    """Return what was not compared: layer and reason."""
    return [(part.layer, part.why_not) for part in blocks.coverage if part.why_not is not None]


@pytest.mark.parametrize("grad_checkpointing", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, FLOAT32, torch.bfloat16, torch.float16])
def test_an_honest_step_is_within_what_rounding_explains(dtype, grad_checkpointing):
    blocks = found(dtype=dtype, grad_checkpointing=grad_checkpointing)
    assert (blocks.wrong, left_out(blocks)) == ({}, [])
    assert {part.layer for part in blocks.coverage} == {1, 2, 3, None}
    assert len(blocks.parts) == 3 * 8 + 4
    assert all(2 * part.telling > part.rows for part in blocks.parts.values())
    assert max(part.ratio for part in blocks.parts.values()) < 0.6


def test_a_step_without_an_update_is_judged_too():
    assert found(work="backward").wrong == {}


def spoilt_block(change):
    """Let the second block compute something else."""

    def spoil(model):
        block = model.blocks[1]
        block.forward = lambda x: change(block, x)

    return spoil


def rounded_input(block, x):
    x = x + block.attention(block.norm_attention(x))
    return x + block.mlp(block.norm_mlp(x).bfloat16().to(x.dtype))


def no_residual_at_the_end(block, x):
    y = block.attention(block.norm_attention(x))
    x = torch.cat([(x + y)[:, :-2], y[:, -2:]], dim=1)
    return x + block.mlp(block.norm_mlp(x))


def detached_beyond(block, x):
    x = x + block.attention(block.norm_attention(x))
    return x + block.mlp(block.norm_mlp(torch.cat([x[:, :400], x[:, 400:].detach()], dim=1)))


def other_activation(block, x):
    x = x + block.attention(block.norm_attention(x))
    return x + block.mlp[2](F.gelu(block.mlp[0](block.norm_mlp(x))))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (rounded_input, {"block 2 output"}),
        (no_residual_at_the_end, {"block 2 output", "block 2 d_x"}),
        (detached_beyond, {"block 2 d_attention", "block 2 d_x"}),
        (other_activation, {"block 2 output", "block 2 d_mlp.0.weight"}),
    ],
)
def test_a_block_that_is_wrong_is_named(change, names):
    wrong = found(spoil=spoilt_block(change)).wrong
    assert names <= set(wrong)
    assert all(name.startswith("block 2") for name in wrong)


def test_another_epsilon_is_found_where_it_is():
    def spoil(model):
        model.blocks[0].norm_attention.eps, model.norm.eps = 1e-3, 1e-3

    assert {"block 1 attended", "final norm"} <= set(found(spoil=spoil).wrong)


def test_what_happens_between_two_blocks_is_found():
    def backward_alone(model):
        model.run_block = lambda block, x, ck: subject.run_block(
            block, torch.cat([x[:1], 0.5 * x[1:] + 0.5 * x[1:].detach()]) if block is model.blocks[2] else x, ck
        )

    wrong = found(spoil=backward_alone).wrong
    assert "block 2 to the next, backward" in wrong
    assert "block 2 to the next, forward" not in wrong


def test_half_of_the_embeddings_gradient_is_found():
    def spoil(model):
        model.embedding.weight.register_hook(lambda gradient: 0.5 * gradient)

    assert set(found(spoil=spoil).wrong) == {"embedding d_weight"}


def test_another_embedding_is_found():
    def spoil(model):
        honest = model.embedding.forward
        model.embedding.forward = lambda tokens: honest(tokens.roll(1, dims=1))

    assert "embedding" in found(spoil=spoil).wrong


def test_a_block_of_which_something_was_not_seen_is_not_compared():
    blocks = found(lose="d_attended")
    assert left_out(blocks) == [(2, "d_attended was not seen")]
    assert not any(name.startswith("block 2") for name in blocks.parts)


def compiled(model):
    show_always(model)
    with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):  # Inductor would take a minute
        model.compile_blocks()


@pytest.mark.parametrize("grad_checkpointing", [True, False])
@pytest.mark.parametrize("dtype", [FLOAT32, torch.bfloat16])
def test_compiled_blocks_are_judged_as_those_that_run_eagerly(dtype, grad_checkpointing):
    blocks = found(dtype=dtype, grad_checkpointing=grad_checkpointing, spoil=compiled)
    assert (blocks.wrong, left_out(blocks)) == ({}, [])
    assert len(blocks.parts) == 3 * 8 + 4
    assert max(part.ratio for part in blocks.parts.values()) < 0.6


def wrong_if_compiled(block, x):
    x = x + block.attention(block.norm_attention(x))
    return x + block.mlp(block.norm_mlp(x)) * (1.01 if torch.compiler.is_compiling() else 1.0)


def test_a_block_that_is_wrong_only_when_it_is_compiled_is_named():
    def spoil(model):
        spoilt_block(wrong_if_compiled)(model)
        compiled(model)

    wrong = set(found(spoil=spoil).wrong)
    assert {"block 2 output", "block 2 d_mlp.0.weight"} <= wrong
    assert all(name.startswith("block 2") for name in wrong)
    assert found(spoil=spoilt_block(wrong_if_compiled)).wrong == {}


def wrong_if_computed_again(block, x):
    x = x + block.attention(block.norm_attention(x))
    return x + block.mlp(block.norm_mlp(x)) * (1.01 if torch.is_grad_enabled() else 1.0)


def test_a_compiled_block_that_is_wrong_only_when_it_is_computed_again_is_named():
    """What is computed again serves the gradients alone, and those are all judged."""

    def spoil(model):
        spoilt_block(wrong_if_computed_again)(model)
        compiled(model)

    wrong = set(found(spoil=spoil).wrong)
    assert {"block 2 d_attention", "block 2 d_mlp.0.weight"} <= wrong
    assert "block 2 output" not in wrong


def test_what_happens_between_compiled_blocks_is_found():
    def spoil(model):
        compiled(model)
        honest = model.run_block
        model.run_block = lambda block, x, ck: honest(block, x + (block is model.blocks[1]), ck)

    assert "block 2 output" in found(spoil=spoil).wrong


def test_compiled_layers_that_show_nothing_are_not_compared():
    def spoil(model):
        model.is_compiled = True

    why = "attended, attention, d_attended, d_attention was not seen"
    assert left_out(found(spoil=spoil)) == [(layer, why) for layer in (1, 2, 3)]


def test_nothing_of_a_step_that_is_a_graph_is_compared():
    blocks = found(is_graph=True)
    assert left_out(blocks) == [(None, GRAPHED)]
    assert not blocks.parts
