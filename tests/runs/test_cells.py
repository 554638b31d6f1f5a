"""Cells of parameters and cells of a reader's own: what is read, what is refused, what is forgotten."""

import numpy as np
import pytest

from nsa_lib.subject.config import ConfigError
from nsa_lib.workbook.questions import QUESTIONS

SMOKE = QUESTIONS["smoke"].request

DECLARED = 'profile: str = "auto"  # help\nsteps: int = None\nw: int = None\nd: int = None\nlr: float = 3e-4\n'

TYPED_WRONG = DECLARED.replace("steps", "stepz")

INJECTED = "# Parameters\nsteps = 10\n"


def ran(*cells, **overwritten):
    """Return the globals of a notebook that ran these cells; then it came to hold something else."""
    space = {"In": ["", *cells]}
    for cell in cells:
        exec(cell, space)
    return {**space, **overwritten}


def test_the_cell_that_papermill_adds_overrules_the_one_before_it():
    read = SMOKE.read(ran(DECLARED, INJECTED))
    assert (read["steps"], read["w"], read["lr"], read["seed"]) == (10, None, 3e-4, 0)


@pytest.mark.parametrize("cells", [[DECLARED, "# Parameters\nsteps = 10\nstepz = 3\n"], [TYPED_WRONG]])
def test_an_unknown_name_is_refused(cells):
    with pytest.raises(ConfigError, match="stepz: no such parameter of smoke"):
        SMOKE.read(ran(*cells))


@pytest.mark.parametrize(
    "cells",
    [
        [TYPED_WRONG, DECLARED, INJECTED],
        [DECLARED, INJECTED.replace("steps", "stepz"), INJECTED],
        [DECLARED, TYPED_WRONG, DECLARED, INJECTED],
    ],
    ids=["the notebook's cell", "papermill's cell", "a name that was there before"],
)
def test_a_name_that_was_corrected_in_the_same_kernel_is_forgotten(cells):
    assert SMOKE.read(ran(*cells))["steps"] == 10


@pytest.mark.parametrize(
    ("cells", "name"),
    [([DECLARED, TYPED_WRONG], "stepz"), ([TYPED_WRONG, "w: int = 64"], "stepz"), ([TYPED_WRONG, INJECTED], "stepz")],
    ids=["typed wrong last", "another cell declares one", "papermill says another"],
)
def test_a_name_that_still_stands_in_its_cell_is_not(cells, name):
    with pytest.raises(ConfigError, match=name):
        SMOKE.read(ran(*cells))


@pytest.mark.parametrize(
    "own",
    [
        "a, b = 1, 2",
        "a, b = 1, 2\nx: int = 3",
        "# Parameters\na, b = 1, 2",
        "# Parameters of my plot\nwidth = 3",
        "x: int = 3",
        "import os\nstepz: int = 3",
        "stepz = 3",
        "rows = [w for w in range(3)]",
        "w: np.ndarray = np.ones(3)",
        "w = np.ones(3)",
        "d = w = 7",
        "x = {}\nx['w'] = 1",
        "def w():\n    return 1",
    ],
)
def test_a_cell_of_the_readers_own_is_not_read(own):
    assert SMOKE.read(ran("import numpy as np", DECLARED, INJECTED, own)) == SMOKE.read(ran(DECLARED, INJECTED))


def test_what_another_cell_overwrote_is_told():
    assert SMOKE.overwritten(ran(DECLARED, INJECTED, w=np.ones(3), d=7)) == ["d", "w"]
    assert SMOKE.overwritten(ran(DECLARED, INJECTED, seed=7)) == []
    assert SMOKE.overwritten({"w": 64, "In": ["%matplotlib inline", "w = 64"]}) == []


def test_a_cell_with_magics_is_no_cell_of_parameters():
    read = SMOKE.read({"steps": 10, "In": ["%load_ext autoreload", "stepz = 3"]})
    assert read["steps"] == 10, "a notebook without such a cell is read by its globals"


def test_a_value_may_be_an_expression_of_what_the_notebook_knows():
    assert SMOKE.read(ran("block = 16", DECLARED, "w: int = 4 * block"))["w"] == 64
    with pytest.raises(ConfigError, match=r"^w=4 \* gone: NameError: ") as refusal:
        SMOKE.read({"In": ["w: int = 4 * gone"]})
    assert "\n" not in str(refusal.value)


def test_a_parameter_that_is_deleted_from_its_cell_has_its_default_again():
    assert SMOKE.read(ran(DECLARED + "seed: int = 3", DECLARED, seed=3))["seed"] == 3, "that cell still says so"
    assert SMOKE.read(ran(DECLARED, seed=3))["seed"] == 0


def test_paths_that_papermill_injects_are_no_parameters():
    injected = "# Parameters\nPAPERMILL_INPUT_PATH = 'a'\nPAPERMILL_OUTPUT_PATH = 'b'\nsteps = 10\n"
    assert SMOKE.read(ran(DECLARED, injected))["steps"] == 10


def test_a_name_of_a_readers_own_that_is_nearly_a_parameter_is_told():
    assert SMOKE.mistyped(ran(DECLARED, "stepz = 3\nrows = 4")) == {"stepz": "steps"}
    assert SMOKE.mistyped(ran(DECLARED, "x = 1", "steps = 3")) == {}, "overwritten tells of the second"
