"""What a blind trial taught: honest ones that were judged wrong, mistakes that were missed."""

import pytest
import torch

from nsa_lib.contract.agenda import OWED
from nsa_lib.worker.preflight.own.precision import rounding
from nsa_lib.worker.preflight.own.trial import trial_of
from tests.worker.preflight.own import blind_honest, blind_mistakes
from tests.worker.preflight.own.honest import Model
from tests.worker.preflight.own.test_own import case_of, look


def those_of(module):
    for name, thing in vars(module).items():
        if isinstance(thing, type) and thing.__module__ == module.__name__ and not name.startswith("_"):
            yield name, "model" if issubclass(thing, Model) else "attention", thing.__doc__.partition(":")[0]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # an older checkpoint's under no_grad
@pytest.mark.parametrize("check", OWED)
@pytest.mark.parametrize(("name", "role", "_"), list(those_of(blind_honest)), ids=lambda value: str(value)[:20])
def test_what_is_right_passes_every_check_that_is_required(name, role, _, check):
    found = look(check, case_of("blind_honest", name, role=role, seq_len=150))
    assert found.holds or not found.required, found


@pytest.mark.parametrize(("name", "role", "check"), list(those_of(blind_mistakes)), ids=lambda value: value)
def test_a_mistake_is_found_by_the_check_that_is_named_for_it(name, role, check):
    found = look(check, case_of("blind_mistakes", name, role=role, seq_len=150))
    assert found.holds is False, found
    assert found.required, found


def test_code_that_rounds_to_float32_inside_is_known_by_its_roundings():
    """Attention by hand in float64 is finer by five digits than a Fourier transform in float32."""
    fine, coarse = (
        rounding(trial_of(case_of(*of), lambda: None), torch.float64)
        for of in (("honest", "Softmax"), ("blind_honest", "LongConvolution"))
    )
    assert fine < 1e-14
    assert 1e-9 < coarse < 1e-6


@pytest.mark.parametrize("check", ["future", "others"])
def test_what_rounds_to_float32_inside_is_right_in_float64_too(check):
    found = look(check, case_of("blind_honest", "LongConvolution", dtype="float64", seq_len=97))
    assert found.holds, found
