"""The rooms of nsa_lib and who may import whom: the subject knows nothing of the instrument, the notebook no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nsa_lib

PACKAGE = Path(nsa_lib.__file__).parent

ROOMS = ("subject", "contract", "worker", "runs", "judgement", "report", "workbook")

FLOORS = (("subject",), ("contract",), ("worker", "runs"), ("judgement",), ("report",), ("workbook",),
          ("validation", "selftest"), ("__main__",))  # fmt: skip
"""From the ground up: a room imports what lies below it and never what lies beside or above."""

WITH_TORCH = ("subject", "worker")

TORCH_FREE = ("nsa_lib.subject.config", "nsa_lib.subject.own.spec")
"""What the notebook's side may take of the rooms with torch."""


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(name):
    return name.split(".")[1]


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Names of everything a file imports, wherever in it: at its top, in a function, for typing."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path):
    """Return the modules of nsa_lib that a file imports, without the names within them."""
    known = {module_name(other) for other in modules()}
    found = {name for name in imports(path) if name.startswith("nsa_lib.")}
    return {name if name in known else name.rpartition(".")[0] for name in found}


def floor(name):
    return next(number for number, rooms in enumerate(FLOORS) if room(name) in rooms)


by_module = pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))


def test_there_are_seven_rooms_and_three_files():
    entries = {path.name for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "__init__.py")}
    assert entries == {*ROOMS, "validation.py", "selftest.py", "__main__.py"}


@by_module
def test_no_import_runs_up_or_across(path):
    own = module_name(path)
    for name in own_imports(path):
        assert room(name) == room(own) or floor(name) < floor(own), f"{own} imports {name}"


@by_module
def test_the_worker_and_the_notebooks_side_meet_in_the_contract_alone(path):
    own = module_name(path)
    if floor(own) > floor("nsa_lib.contract") and room(own) != "worker":
        taken = {name for name in own_imports(path) if room(name) in WITH_TORCH} - {"nsa_lib.subject"}
        assert taken <= set(TORCH_FREE)
    if room(own) not in WITH_TORCH or own in TORCH_FREE:
        assert not any(name.split(".")[0] == "torch" for name in imports(path))


@by_module
def test_no_notebooks_folder_imports_anothers(path):
    parts = path.relative_to(PACKAGE).parts
    if parts[0] != "workbook" or len(parts) < 3:
        return
    folders = {folder.name for folder in (PACKAGE / "workbook").iterdir() if folder.is_dir()}
    for name in own_imports(path):
        if room(name) == "workbook":
            assert name.split(".")[2] not in folders - {parts[1]}, f"{path} imports {name}"


def test_no_imports_go_round_in_a_circle():
    """Imports inside a function count too: what needs them cannot be read alone."""
    waiting = {module_name(path): own_imports(path) - {module_name(path)} for path in modules()}
    packages = {module_name(path) for path in modules() if path.name == "__init__.py"}
    # `from package import module` reads the package as well, which says nothing of a circle.
    waiting = {name: found - packages for name, found in waiting.items()}
    while free := [name for name, found in waiting.items() if not found & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting


@pytest.mark.parametrize(
    "name",
    [
        "nsa_lib.report",
        "nsa_lib.report.exporter",
        "nsa_lib.workbook.run",
        "nsa_lib.workbook.history",
        "nsa_lib.__main__",
    ],
)
def test_the_notebooks_side_never_loads_torch(name):
    code = f"import sys, {name}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_environment_reads_os_environ():
    readers = {
        module_name(path)
        for path in modules()
        if "environ" in {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    }
    assert readers == {"nsa_lib.runs.environment"}


def test_nothing_outside_the_subject_calls_an_underscore_method_of_it():
    private = {
        node.name
        for path in (PACKAGE / "subject").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_") and not node.name.startswith("__")
    }
    for path in modules():
        if room(module_name(path)) != "subject":
            used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
                    and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))}  # fmt: skip
            assert not used & private, path


@by_module
def test_files_and_functions_are_short(path):
    assert "kernels" in path.parts or len(path.read_text().splitlines()) <= 300
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and "kernels" not in path.parts:
            assert node.end_lineno - node.lineno < 40, f"{path}: {node.name}"
