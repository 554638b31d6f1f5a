"""A NaN that is planted: anomaly detection says where, and whatever keeps it from doing so shows."""

from functools import partial

import pytest
import torch

from nsa_lib.subject import training
from nsa_lib.subject.model import TinyLM
from nsa_lib.worker.planted_nan import planted_nan
from tests.subject.test_config import CASE


def said(within=training.train_step, **detection):
    torch.manual_seed(0)
    model = TinyLM(CASE.model, grad_checkpointing=True)
    tokens = torch.randint(CASE.model.vocab, (CASE.batch, CASE.seq_len + 1))
    step = partial(within, model, training.make_optimizer(model, 1e-3), tokens)
    with torch.autograd.set_detect_anomaly(**detection):
        found = planted_nan(model, step)["said"]
    assert bool(torch.isnan(model.embedding.weight).any()) == (found is None), "a step that is ended changes no weight"
    assert not model.norm._forward_hooks
    return found


def test_detection_that_is_in_force_says_what_returned_nan(recwarn):
    assert said(mode=True).endswith("returned nan values in its 0th output.")
    assert not [warning for warning in recwarn if "Error detected" in str(warning.message)]


def in_forward_alone(model, *rest):
    with torch.autograd.set_detect_anomaly(True):
        mark = {"forward": lambda: torch.autograd.set_detect_anomaly(False)}
        return training.train_step(model, *rest, mark=lambda phase: mark.get(phase, int)())


@pytest.mark.parametrize(
    "planted",
    [{"mode": False}, {"mode": True, "check_nan": False}, {"mode": True, "within": in_forward_alone}],
    ids=["off", "nan-unchecked", "off-in-backward"],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_detection_that_is_not_in_force_says_nothing(planted):
    assert said(**planted) is None


def test_another_error_of_the_step_is_no_answer():
    def fails(model, *rest):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        said(within=fails, mode=True)
