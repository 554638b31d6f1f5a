"""Which of the cells that ran are a notebook's parameters, and what they say.

A notebook's globals hold more than its parameters: a reader's own `w = np.ones(3)`, and names typed wrong that have
been corrected since. So a value is that of the cell that declares it, and only what such a cell says now is read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from contextlib import suppress

from nsa_lib.runs.parameters import Parameter
from nsa_lib.subject.config import ConfigError

INJECTED = "# Parameters"
"""First line of the cell that papermill adds."""

OF_PAPERMILL = "PAPERMILL_"
"""How the names begin that `papermill --inject-paths` adds."""

Assigned = Mapping[str, ast.expr]
"""What a cell assigns: by name, the expression."""


def parameters_cells(declared: Mapping[str, Parameter], sources: Iterable[str]) -> list[Assigned]:
    """Return what each cell of parameters assigns, in the order in which they ran.

    Such a cell assigns plain names and nothing else; it is papermill's, or declares a parameter with its type, as
    `steps: int = 60`. One that has been run again, corrected, counts as it is now.
    """
    cells: list[Assigned] = []
    for source in sources:
        if (assigned := _assigned(declared, source)) is not None:
            cells = [cell for cell in cells if not (cell.keys() & declared.keys()) <= assigned.keys()]
            cells.append(assigned)
    return cells


def _assigned(declared: Mapping[str, Parameter], source: str) -> Assigned | None:
    """Return what a cell of parameters assigns; None for another cell."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a cell with magics
        return None
    if not all(map(_is_plain, statements)):
        return None
    injected = source.partition("\n")[0].rstrip() == INJECTED
    if not injected and not any(_declares(declared, statement) for statement in statements):
        return None
    named = {_target(statement).id: statement.value for statement in statements}
    return {name: value for name, value in named.items() if not name.startswith(OF_PAPERMILL)}


def own_names(namespace: Mapping[str, object]) -> set[str]:
    """Return the names that the cells which ran so far assign plainly, `step = 60`."""
    names = set()
    for source in namespace.get("In", ()):
        with suppress(SyntaxError):  # a cell with magics
            names |= {_target(statement).id for statement in ast.parse(source).body if _is_plain(statement)}
    return names


def _is_plain(statement: ast.stmt) -> bool:
    """Return whether a statement gives one name a value."""
    if isinstance(statement, ast.Assign):
        return len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name)
    return isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and bool(statement.value)


def _declares(declared: Mapping[str, Parameter], statement: ast.Assign | ast.AnnAssign) -> bool:
    name = _target(statement).id
    if not isinstance(statement, ast.AnnAssign) or name not in declared:
        return False
    return ast.unparse(statement.annotation) == declared[name].kind.__name__


def _target(statement: ast.Assign | ast.AnnAssign) -> ast.Name:
    return statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]


def said_in_cells(cells: Iterable[Assigned], namespace: Mapping[str, object]) -> dict[str, object]:
    """Return the values that cells of parameters give, a later cell overruling those before it.

    Raises ConfigError, naming it, for an expression that has no value.
    """
    values = {}
    for name, expression in {name: expression for cell in cells for name, expression in cell.items()}.items():
        code = compile(ast.Expression(expression), "<parameters>", "eval")
        try:
            values[name] = eval(code, dict(namespace))
        except Exception as error:  # noqa: BLE001 - whatever the notebook's own expression raises
            raise ConfigError(f"{name}={ast.unparse(expression)}: {type(error).__name__}: {error}") from None
    return values
