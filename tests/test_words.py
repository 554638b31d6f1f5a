"""The words that the program prints: of one thing in the singular, each figure with one unit, no value of Python's."""

import ast
import re

import pytest

from nsa_lib.contract.figures import COUNTED
from nsa_lib.judgement.gate import FAIL, NOT_RUN, PASS, WARN, GateResult, verdict
from nsa_lib.report.tables import gates_table
from nsa_lib.runs.environment import PROJECT

SOURCES = sorted((PROJECT / "nsa_lib").rglob("*.py"))

MANY = re.compile(r"(?<!of )\x00 (?:[a-z]+ )?[a-z]+s\b")
"""A length, written before words in the plural, which of one are wrong; of a total they are right."""

NEVER_ONE = {
    "report/verdict.py": "more than one verdict is what it complains of",
    "judgement/fingerprint.py": "further takes are three at each place",
    "judgement/trend.py": "an error of the code, not of a run",
    "workbook/several_gpus/gates.py": "said of more than one rank alone",
    "workbook/backward_scaling/measures.py": "an error of the code, not of a run",
    "worker/data.py": "the bytes of a text",
    "worker/preflight/finding.py": "tensors of a whole attention",
    "worker/preflight/own/reach.py": "edits of every kind",
}


def counts_in_the_plural(source):
    """Return the texts of a file that put the length of something before a plural."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [_part(value) for value in node.values]
            if MANY.search("".join(parts)):
                yield ast.unparse(node)


def _part(value):
    if isinstance(value, ast.Constant):
        return str(value.value)
    is_length = isinstance(value.value, ast.Call) and ast.unparse(value.value.func) == "len"
    return "\x00" if is_length else "\x01"


def test_what_is_counted_is_said_in_the_number_that_it_has():
    found = {
        str(path.relative_to(PROJECT / "nsa_lib")) for path in SOURCES if [*counts_in_the_plural(path.read_text())]
    }
    assert found == set(NEVER_ONE), "use contract.figures.counted"


def test_the_search_finds_what_it_is_for():
    assert [*counts_in_the_plural('f"{len(rows)} steps after"')]
    assert [*counts_in_the_plural('f"{len(rows):,} recorded steps"')]
    assert not [*counts_in_the_plural('f"1 of {len(rows)} steps"')]
    assert not [*counts_in_the_plural("f\"{counted(len(rows), 'step')} after\"")]


def units():
    """Return every unit that a gate of the library names."""
    text = "\n".join(path.read_text() for path in SOURCES)
    return sorted({*re.findall(r'unit="([^"]+)"', text), *COUNTED})


UGLY = re.compile(
    r"None|nan|\binf\b|\[\]|\d\.0\b|\b(\w+) \1\b|0 of 0|\b1 (?:steps|cases|ranks|runs|differences|findings)\b"
)


@pytest.mark.parametrize("unit", units())
@pytest.mark.parametrize("measured", [0, 0.0, 1, 1.0, 2, 75420.0, 1e-9, None, float("nan"), "broken"])
@pytest.mark.parametrize("outcome", [PASS, WARN, FAIL, NOT_RUN])
def test_a_gate_reads_well_whatever_it_measured(unit, measured, outcome):
    gate = GateResult("gate", True, outcome, measured=measured, limit=70_000.0, margin=None, unit=unit, detail="why")
    _, reasons = verdict([gate])
    table = repr(gates_table([gate.__dict__]))
    for said in (*reasons, table):
        assert not UGLY.search(said), said


def test_a_gate_without_a_limit_says_none():
    _, (reason,) = verdict([GateResult("memory", True, FAIL, measured=3.0, unit="MiB", detail="grew")])
    assert reason == "memory failed at 3 MiB: grew"
