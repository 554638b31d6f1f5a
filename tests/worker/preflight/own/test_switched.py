"""A model's own checkpointing, under either name: what switching it sets is no harm, what a second pass leaves is."""

import pytest

from tests.worker.preflight.own.test_own import case_of, look

MODEL = """
import torch
from torch.utils.checkpoint import checkpoint
from tests.worker.preflight.own.honest import Model

class Switched(Model):
    on, hooks, supports_gradient_checkpointing = False, (), True

    def activation_checkpointing_enable(self):
        self.on, self.hooks = True, ["of the embedding"]

    def activation_checkpointing_disable(self):
        self.on, self.hooks = False, ()

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + (checkpoint(self.run, layer, x, use_reentrant=False) if self.on else layer(x))
        return self.head(self.norm(x))

    def run(self, layer, x):
        return layer(x)

class OlderName(Switched):
    gradient_checkpointing_enable = Switched.activation_checkpointing_enable
    gradient_checkpointing_disable = Switched.activation_checkpointing_disable

class CannotSwitch(Switched):
    supports_gradient_checkpointing = False

class Counts(Switched):
    calls = 0
    def run(self, layer, x):
        self.calls += 1
        return layer(x)

class OneLayerLess(Switched):
    def run(self, layer, x):
        return 0.9 * layer(x)
"""


@pytest.fixture
def checkpointing(tmp_path):
    def found(name):
        (tmp_path / "switched.py").write_text(MODEL)
        return look("checkpointing", case_of(tmp_path / "switched", name, role="model", seq_len=40))

    return found


@pytest.mark.parametrize("name", ["Switched", "OlderName"])
def test_what_switching_sets_is_no_state_that_a_call_leaves(checkpointing, name):
    found = checkpointing(name)
    assert found.holds, found


@pytest.mark.parametrize("name", ["Counts", "OneLayerLess"])
def test_what_the_second_pass_changes_is_found(checkpointing, name):
    found = checkpointing(name)
    assert found.holds is False, found


def test_a_model_that_says_that_it_cannot_is_not_judged(checkpointing):
    assert checkpointing("CannotSwitch").holds is None
