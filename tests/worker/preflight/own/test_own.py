"""What others wrote, honest and with one mistake each, before the checks of what anybody's attention owes."""

from dataclasses import replace
from pathlib import Path

import pytest

from nsa_lib.contract.agenda import OWED
from nsa_lib.contract.case import CaseConfig
from nsa_lib.subject.config import OWN, ModelConfig, NSAConfig, Own
from nsa_lib.subject.own.attention import install
from nsa_lib.worker.preflight.own import CHECKS, copying, found_by
from nsa_lib.worker.preflight.own.trial import trial_of
from tests.worker.preflight.own import honest, mistakes

HERE = Path(__file__).parent

SIZES = NSAConfig(dim=32, heads=2, groups=2, d_k=16, d_v=16, l=16, d=16, l_sel=16, n_sel=4, w=32)


def case_of(file, name, *, role="attention", dtype="float32", seq_len=330, layers=2, **arguments):
    own = Own(role=role, spec=f"{HERE / file}.py:{name}", arguments=arguments)
    part = {} if role == "model" else {role: OWN}
    model = ModelConfig(nsa=SIZES, layers=layers, vocab=64, own=own, **part)
    return CaseConfig(
        case_id="own", work="checks", model=model, seq_len=seq_len, batch=1, steps=1, warmup_steps=0, dtype=dtype,
        grad_checkpointing=False, lr=3e-3, seed=0, device="cpu", backends=(OWN,),
    )  # fmt: skip


def look(name, case):
    install(case.model)
    return found_by(CHECKS[name], trial_of(case, lambda: None))


HONEST = [
    *(("attention", name) for name in (
        "Softmax", "Sliding", "Linear", "Latent", "Tuple", "Float32Only", "NoDropout", "Hybrid", "Recurrent", "Grouped",
        "BiasedSigmoid",
    )),
    ("backend", "kernel"),
    ("model", "Model"),
]  # fmt: skip


@pytest.mark.parametrize("check", [*OWED, "copy_near"])
@pytest.mark.parametrize(("role", "name"), HONEST, ids=[name for _, name in HONEST])
def test_what_is_right_passes_every_check_that_is_required(role, name, check):
    found = look(check, case_of("honest", name, role=role))
    assert found.holds or not found.required, found


def test_a_sigmoid_over_the_length_learns_to_copy_among_few_tokens(monkeypatch):
    monkeypatch.setattr(copying, "ATTEMPTS", 1)
    for seed in range(2):
        found = look("copy_near", replace(case_of("honest", "Sigmoid"), seed=seed))
        assert found.holds, found
        assert "a few tokens away among 8" in found.detail


def planted():
    """Return role, name and the check that must find it, of everything in `mistakes`."""
    for name, thing in vars(mistakes).items():
        if not name.startswith("_") and getattr(thing, "__module__", None) == mistakes.__name__:
            is_model = isinstance(thing, type) and issubclass(thing, honest.Model)
            role = "model" if is_model else "attention" if isinstance(thing, type) else "backend"
            yield role, name, thing.__doc__.partition(":")[0]


def test_there_are_many_mistakes_and_every_check_finds_one():
    found = list(planted())
    assert len(found) >= 25
    assert {check for *_, check in found} == {*OWED, "copy_near", "compiled"}


@pytest.mark.parametrize(("role", "name", "check"), list(planted()), ids=lambda value: value)
def test_a_mistake_is_found_by_the_check_that_is_named_for_it(role, name, check):
    found = look(check, case_of("mistakes", name, role=role))
    assert found.holds is False, found
    assert found.required, found


def test_what_runs_in_16_bits_alone_is_not_judged_and_a_person_must_decide():
    found = look("self_error", case_of("odd", "SixteenBitsOnly", dtype="bfloat16"))
    assert (found.holds, found.required) == (None, True)
    assert "neither in float64 nor in float32" in found.detail


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("check", ["future", "others", "self_error", "finite_difference", "checkpointing", "large"])
def test_what_is_right_is_right_in_every_dtype(check, dtype):
    found = look(check, case_of("honest", "Softmax", dtype=dtype))
    assert found.holds, found


def test_code_that_raises_fails_the_check_and_its_own_traceback_is_kept():
    found = look("future", case_of("odd", "RaisesBeyond100"))
    assert (found.holds, found.measured) == (False, "raises")
    assert "ValueError: 330 tokens are too many" in found.detail
    assert "odd.py" in found.user_traceback
    assert "nsa_lib" not in found.user_traceback.replace(str(HERE), "")


def test_what_learns_slowly_is_given_time(monkeypatch):
    monkeypatch.setattr(copying, "STEPS", copying.CHECKED_EVERY)
    found = look("copy_near", case_of("honest", "Softmax"))
    assert found.holds
    assert f"after {copying.STEPS} steps" not in found.detail


def test_what_cannot_see_all_places_does_not_get_there_with_more_time(monkeypatch):
    monkeypatch.setattr(copying, "MOST_STEPS", copying.STEPS + 100)
    monkeypatch.setattr(copying, "ATTEMPTS", 1)
    found = look("copy_near", case_of("odd", "ThreeOfFour"))
    assert found.holds is False
    assert found.measured > copying.GUESSED_PERCENT
    assert found.measured < copying.ACCURACY_PERCENT
