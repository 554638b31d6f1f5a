"""What a model's attention looks at, against counts made by hand, and without a trace in what a case measures."""

import json
from dataclasses import replace

import pytest
import torch

from nsa_lib.subject import training
from nsa_lib.subject.config import ConfigError, Own
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker import attention_map as maps
from nsa_lib.worker import data
from nsa_lib.worker.attention_map import attention_map, selection_share
from nsa_lib.worker.loop import run_to_result
from nsa_lib.worker.selection_health import Selection
from tests.subject.test_config import CASE, MODEL, NSA

DEEP = replace(MODEL, layers=2, nsa=replace(NSA, n_sel=3))

LENGTH = 300
"""Not a multiple of the 64 tokens of a block: five blocks, the last one with 44 queries."""


def tokens(batch=2):
    return torch.randint(MODEL.vocab, (batch, LENGTH))


def test_shares_are_those_counted_one_query_after_another():
    blocks = torch.tensor([[0, -1, -1], [0, 1, -1], [0, 1, 2]])
    indices = torch.stack([blocks[(t // 64).clamp(max=2)] for t in torch.arange(LENGTH)])[None, None]
    indices = torch.cat([indices, indices.where(indices != 2, 3)], dim=1)  # the second group reads 3 in place of 2
    expected = [[0.0] * 5 for _ in range(5)]
    for group in indices[0]:
        for query, chosen in enumerate(group.tolist()):
            for block in chosen:
                if block >= 0:
                    own = query // 64
                    expected[own][block] += 1 / (2 * (44 if own == 4 else 64))
    torch.testing.assert_close(selection_share(indices, 64), torch.tensor(expected, dtype=torch.float64))


def test_each_layer_is_read_where_it_stands():
    model, batch = TinyLM(DEEP), tokens()
    read = []
    for block in model.blocks:
        block.attention.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    kept = attention_map(model, batch)
    assert len(read) == 2
    for layer, (block, x) in enumerate(zip(model.blocks, read, strict=True)):
        shares = selection_share(block.attention.select(x), 64)
        torch.testing.assert_close(torch.tensor(kept["selected"][layer]), shares.float(), atol=1e-4, rtol=0)
        gates = block.attention.branch_gates_of(x).double()
        by_hand = [[gates[:, head, :, branch].mean().item() for branch in range(3)] for head in range(4)]
        assert kept["branch_gates"][layer] == [[pytest.approx(mean, abs=1e-4) for mean in row] for row in by_hand]
    assert (kept["l_sel"], kept["branches"]) == (64, ["cmp", "slc", "win"])


def test_many_blocks_are_averaged_with_their_neighbours(monkeypatch):
    model, batch = TinyLM(DEEP), tokens()
    whole = torch.tensor(attention_map(model, batch)["selected"])
    monkeypatch.setattr(maps, "MOST_BLOCKS", 3)
    kept = attention_map(model, batch)
    assert kept["l_sel"] == 128
    for layer, full in zip(torch.tensor(kept["selected"]), whole, strict=True):
        assert layer.shape == (3, 3)
        assert layer[1, 0] == pytest.approx(full[2:4, :2].mean().item(), abs=1e-4)
        assert layer[2, 2] == pytest.approx(full[4, 4].item(), abs=1e-4), "what is cut counts as much"


def test_what_a_query_must_and_must_not_read_is_seen():
    for layer in torch.tensor(attention_map(TinyLM(DEEP), tokens())["selected"]):
        assert torch.all(layer.triu(diagonal=1) == 0)
        assert torch.all(layer[:, 0] == 1)
        assert torch.all(layer.diagonal() == 1)
        # Three blocks a query, two and one where there are no more.
        assert layer.sum(dim=1).tolist() == pytest.approx([1, 2, 3, 3, 3], abs=1e-3)


def test_what_each_layers_selection_is_worth_is_found_where_it_stands():
    model, batch = TinyLM(DEEP), tokens()
    read = []
    for block in model.blocks:
        block.attention.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    kept = attention_map(model, batch)
    for health, block, x in zip(kept["health"], model.blocks, read, strict=True):
        by_hand = Selection.of(block.attention.select(x), 64)
        assert (health["forced"], health["never_picked"]) == (by_hand.forced(), by_hand.never_picked())
        assert health["choosing"] == pytest.approx(1 - 3 * 64 / LENGTH)
        assert health["near_ties"] is None
        assert health["heads"] == 4


class Selecting(torch.nn.Module):
    """A user's attention that shows which blocks it reads."""

    def __init__(self, dim):
        super().__init__()
        self.out = torch.nn.Linear(dim, dim)

    def forward(self, x):
        return self.out(x)

    def select(self, x):
        own = torch.arange(x.shape[1])[:, None] // 16
        return (own - torch.arange(3, -1, -1)).clamp(min=-1).expand(len(x), 1, -1, -1)


class Gated(Selecting):
    """And how open its gates are."""

    def branch_gates(self, x):
        return torch.zeros(len(x), 2, x.shape[1], 3)


def own_model(attention):
    own = Own(role="attention", spec=f"{__name__}:{attention.__name__}", sizes={"dim": NSA.dim, "l_sel": 16, "w": 48})
    return TinyLM(replace(MODEL, layers=2, attention="own", own=own))


def test_a_users_attention_is_shown_by_what_it_shows():
    kept = attention_map(own_model(Selecting), tokens())
    assert [health["heads"] for health in kept["health"]] == [None, None]
    assert 0 < kept["health"][0]["in_window"] < 1  # three blocks back begins before the window of 48
    gated = attention_map(own_model(Gated), tokens())
    assert [health["shut"] for health in gated["health"]] == [{"cmp": 2, "slc": 2, "win": 2}] * 2


def test_a_model_without_the_selected_branch_has_gates_alone():
    without = replace(DEEP, nsa=replace(DEEP.nsa, branches=("win",)))
    kept = attention_map(TinyLM(without), tokens())
    assert kept["selected"] == kept["health"] == []
    assert torch.tensor(kept["branch_gates"]).shape == (2, 4, 1)


@pytest.mark.parametrize("weight", ["embedding.weight", "blocks.1.attention.branch_gates.weight"])
def test_a_model_that_is_not_finite_has_no_map(weight):
    model = TinyLM(DEEP)
    model.get_parameter(weight).data.fill_(torch.nan)
    assert attention_map(model, tokens()) is None


def test_dense_attention_is_refused():
    with pytest.raises(ConfigError, match="attention=dense"):
        replace(CASE, model=replace(MODEL, attention="dense"), look=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run one case without and with a look; the result and the beats of each."""

    def run(look):
        folder = tmp_path_factory.mktemp("case")
        case = replace(CASE, model=DEEP, seq_len=192, steps=20, profile_operators=True, look=look)
        (folder / "case.json").write_text(case.to_json())
        run_to_result(folder / "case.json")
        beats = [json.loads(line) for line in (folder / "heartbeat.jsonl").read_text().splitlines()]
        return json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail), beats

    run(False)  # constant tables are made in the first case of a process and kept
    return run(False), run(True)


def test_a_look_changes_nothing_that_a_case_measures(runs):
    (without, beats_without), (looked, beats) = runs
    ignored = ("ts", "step_ms", "tokens_per_s", "origin")  # the origin names the case, which asks for the look
    timeless = [
        [{k: v for k, v in beat.items() if k not in ignored} for beat in each] for each in (beats_without, beats)
    ]
    assert timeless[0] == timeless[1]
    assert looked["attention_map"]
    assert without == {name: fact for name, fact in looked.items() if name != "attention_map"}
    assert looked["operators"]["early"]


def test_the_map_of_a_case_is_that_of_its_trained_weights(runs):
    case = replace(CASE, model=DEEP, seq_len=192)
    torch.manual_seed(case.seed)
    model, batch = TinyLM(DEEP), next(data.batches(case))
    optimizer = training.make_optimizer(model, case.lr)
    for _ in range(20):
        training.train_step(model, optimizer, batch)
    assert runs[1][0]["attention_map"] == attention_map(model, batch[:, :-1])
