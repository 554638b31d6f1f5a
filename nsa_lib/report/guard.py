"""What surrounds a verdict must never change it: charts, tables, history and advice run in a guard.

This is the one place where any exception is caught and the notebook goes on: it leaves a line that a reader sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nsa_lib.contract.lines import folded

T = TypeVar("T")


def show(make: Callable[[], T]) -> T | None:
    """Return what `make` makes, for a cell to show; if it fails, print one line that says why and return None."""
    shown, problem = guarded(make)
    if problem:
        print(folded(problem))
    return shown


def guarded(make: Callable[[], T]) -> tuple[T | None, str]:
    """Return what `make` makes and an empty text, or None and the line that says why there is nothing to show."""
    try:
        return make(), ""
    except Exception as error:  # noqa: BLE001
        said = (str(error).splitlines() or [""])[0]
        return None, f"not shown, and without a say in the verdict: {type(error).__name__}: {said}"
