"""Fingerprints are kept once, refused where they prove nothing, and found by all that their bits depend on."""

import json

import pytest

from nsa_lib.contract.case import CaseConfig
from nsa_lib.runs.fingerprints import bits_sha256, keep, kept_for_run, read_fingerprint
from nsa_lib.subject.config import ConfigError
from tests.workbook.smoke.made import healthy

FACTS = {"cpu": "a core", "cpu_capability": "AVX2", "torch": "2.13.0", "driver": "570.1"}


@pytest.fixture
def found():
    """The fingerprint of a healthy smoke."""
    made = healthy("laptop").case("training")["fingerprint"]
    return {**made, "of": {**made["of"], "device_kind": "a core, AVX2"}}


def case():
    return CaseConfig.from_json(json.dumps(healthy("laptop").case("training")["asked"]))


def test_kept_twice_it_is_one_file_and_the_longer_one_stays(found, tmp_path):
    path = keep(found, tmp_path / "kept")
    shorter = {**found, "losses": found["losses"][:60]}
    assert keep(shorter, tmp_path / "kept") == path
    assert len(read_fingerprint(path)["losses"]) == 100
    assert [*path.parent.iterdir()] == [path]


def test_other_bits_of_the_same_are_refused_and_what_was_kept_stays(found, tmp_path):
    path = keep(found, tmp_path)
    other = {**found, "losses": [*found["losses"][:9], "other", *found["losses"][10:]]}
    with pytest.raises(ConfigError, match="step 10, loss has other bits there") as refused:
        keep(other, tmp_path)
    assert str(path) in str(refused.value)
    assert bits_sha256(read_fingerprint(path)) == bits_sha256(found)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"deterministic": False, "why_not": "no fixed order"}, "no fixed order"), ({"losses": []}, "no step")],
    ids=["no-order", "empty"],
)
def test_what_proves_nothing_is_not_kept(found, tmp_path, change, why):
    with pytest.raises(ConfigError, match=why):
        keep({**found, **change}, tmp_path)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("named", [lambda path: path, lambda path: path.parent], ids=["file", "folder"])
def test_a_run_finds_what_was_kept_of_such_a_run_before_its_data_are_known(found, tmp_path, named):
    trained = {**found, "of": {**found["of"], "data_sha256": "e" * 64}}
    path = keep(trained, tmp_path)
    assert kept_for_run(str(named(path)), case(), FACTS, None) == {path.name: trained}


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"torch": "2.5.1"}, "torch 2.5.1, kept 2.13.0"),
        ({"cpu_capability": "AVX512"}, "device_kind a core, AVX512, kept a core, AVX2"),
        ({"package_sha256": "f" * 64}, "package_sha256 ffffffff, kept None"),
    ],
    ids=["torch", "device", "source"],
)
def test_of_another_kind_a_run_is_refused_in_a_line(found, tmp_path, facts, why):
    keep(found, tmp_path)
    with pytest.raises(ConfigError, match="is of another run") as refused:
        kept_for_run(str(tmp_path), case(), {**FACTS, **facts}, None)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


def test_of_a_users_other_code_a_run_is_refused(found, tmp_path):
    keep(found, tmp_path)
    with pytest.raises(ConfigError, match="on_trial_sha256 aaaaaaaa, kept None"):
        kept_for_run(str(tmp_path), case(), FACTS, {"sha256": "a" * 64})


@pytest.mark.parametrize("place", ["nothing", "empty"])
def test_a_place_that_holds_none_is_refused(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=place):
        kept_for_run(str(tmp_path / place), case(), FACTS, None)


def test_kernels_without_an_order_of_sums_are_refused(tmp_path):
    asked = {**healthy("checklist").case("training")["asked"]}
    with pytest.raises(ConfigError, match="backend=fused does"):
        kept_for_run(str(tmp_path), CaseConfig.from_json(json.dumps(asked)), FACTS, None)
