"""What README promises is there: files, commands, names, and examples that are small and lead somewhere."""

import ast
import re

import nsa_lib.workbook.run
from nsa_lib.contract.faults import FAULTS, RANK_FAULTS
from nsa_lib.runs.environment import PROJECT

README = (PROJECT / "README.md").read_text()

EXAMPLES = PROJECT / "reports" / "examples"


def test_it_is_short_and_no_line_but_of_a_table_is_long():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_every_relative_link_leads_to_a_file():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 10
    assert [link for link in links if not (PROJECT / link).exists()] == []


def test_the_map_names_every_room_and_nothing_that_is_not_there():
    tree = README.partition("## Map")[2].split("```")[1]
    rooms = set(re.findall(r"^  (\w+)/", tree, re.MULTILINE))
    assert rooms == {path.parent.name for path in (PROJECT / "nsa_lib").glob("*/__init__.py")}
    named = re.findall(r"^\S.*?(?=   )|  \w+\.py.*?(?=   )", tree, re.MULTILINE)
    folders = {PROJECT, PROJECT / "nsa_lib"}
    missing = [word for line in named for word in line.split() if not any((at / word).exists() for at in folders)]
    assert missing == []


def test_its_python_runs():
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (imported,) = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.ImportFrom)]
    assert imported.module == nsa_lib.workbook.run.__name__
    assert all(hasattr(nsa_lib.workbook.run, name.name) for name in imported.names)


def test_every_target_that_it_names_exists_and_those_of_a_laptop_run_in_ci():
    promised = set(re.findall(r"make ([a-z-]+)", README))
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert promised <= targets
    ci = (PROJECT / ".ci" / "run").read_text()
    tried = set(re.findall(r"part make ([a-z-]+)", ci))
    assert promised - {"lab", "help", "bench-gpu", "bench-selection", "test-gpu", "test-versions", "selftest"} <= tried
    assert "python -m nsa_lib selftest" in ci, "the first half of make selftest"


def test_it_counts_the_seeded_faults():
    assert f"plants {len(FAULTS) - 1 + len(RANK_FAULTS)} faults" in README


def test_the_examples_are_small_and_their_links_lead_to_files():
    assert sum(path.stat().st_size for path in EXAMPLES.iterdir()) <= 16e6
    for page in EXAMPLES.glob("*.html"):
        links = set(re.findall(r'<a [^>]*href="([^"#:]+)"', page.read_text()))
        assert [link for link in links if not (EXAMPLES / link).exists()] == [], page.name
