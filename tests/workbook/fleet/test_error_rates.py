"""A fleet quarantines hardly any healthy member and misses hardly any faulty one; the count itself can fail."""

from nsa_lib.workbook.fleet import band, rules
from tests.bench_fleet import counted, holds


def test_a_thousand_members_are_judged_as_promised():
    assert holds(counted(1000, 1000))


def test_a_band_that_is_too_narrow_does_not_hold(monkeypatch):
    monkeypatch.setattr(band, "FACTOR", 2.0)
    assert not holds(counted(1000, 1000))


def test_a_rule_that_is_left_out_does_not_hold(monkeypatch):
    monkeypatch.setitem(rules.RULES, "memory", rules.fingerprints)
    assert not holds(counted(1000, 1000))
