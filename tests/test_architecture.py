"""Who may import whom: the subject knows nothing of the instrument, and the notebook's side never meets torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nsa_lib

PACKAGE = Path(nsa_lib.__file__).parent

WORKER_SIDE = ("config", "attention", "model", "training", "data", "memory", "profiling", "budget",
               "attestation", "checks", "timing", "faults", "look", "preflight", "case", "worker",
               "prediction")  # fmt: skip
NOTEBOOK_SIDE = ("config", "telemetry", "parameters", "profiles", "environment", "plan", "progress", "predictor",
                 "runner", "capacity", "evidence", "predicted", "scaling", "contrast", "charts", "gates", "store",
                 "review", "readiness", "explore", "report", "history", "validation", "selftest",
                 "__main__")  # fmt: skip
TORCH_FREE_TOOLS = ("allocator", "runnable", "operators", "trend", "telemetry", "contestants", "fault_table",
                    "check_names")  # fmt: skip
ALONE = ("torch_facts",)

MAY_IMPORT = {
    **{name: set(WORKER_SIDE[:i]) | set(TORCH_FREE_TOOLS) for i, name in enumerate(WORKER_SIDE)},
    **{name: set(NOTEBOOK_SIDE[:i]) | set(TORCH_FREE_TOOLS) for i, name in enumerate(NOTEBOOK_SIDE)},
    **{name: {"config"} for name in (*TORCH_FREE_TOOLS, "attention")},
    "fault_table": {"config", "operators"},
    "model": {"config", "attention"},
    "training": {"config", "model"},
    **{name: set() for name in ALONE},
}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit(path):
    """The module or package directly below nsa_lib that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Names of everything a file imports, wherever in it: at its top, in a function, for typing."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place():
    assert {unit(path) for path in modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_before_it(path):
    own = unit(path)
    for name in imports(path):
        if name.startswith("nsa_lib."):
            imported = name.split(".")[1]
            assert imported == own or imported in MAY_IMPORT[own], f"{own} imports {imported}"
        if name.split(".")[0] == "torch":
            assert own in (*WORKER_SIDE[1:], *ALONE), f"{own} imports torch"


@pytest.mark.parametrize("name", ["nsa_lib.report", "nsa_lib.report.exporter", "nsa_lib.store", "nsa_lib.__main__"])
def test_the_notebooks_side_never_loads_torch(name):
    code = f"import sys, {name}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_environment_reads_os_environ():
    readers = {unit(p) for p in modules() if "environ" in {n.attr for n in ast.walk(ast.parse(p.read_text()))
                                                           if isinstance(n, ast.Attribute)}}  # fmt: skip
    assert readers == {"environment"}
