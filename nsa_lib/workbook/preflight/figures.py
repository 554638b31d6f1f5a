"""The charts of a preflight: what the run's own model looks at after a few steps, for people to judge by eye."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import plotly.graph_objects as go

from nsa_lib.contract.agenda import check_names
from nsa_lib.report.charts.attention_map import BRANCH_WORDS, gate_map, selection_map
from nsa_lib.report.charts.chart import BLUE, GREEN, VERMILION, Chart, empty_chart, nothing
from nsa_lib.report.table import Table
from nsa_lib.report.tables import gates_table
from nsa_lib.runs.recorded import Recorded
from nsa_lib.subject.config import BACKEND_NAMES, OWN
from nsa_lib.workbook.preflight.cases import FULL
from nsa_lib.workbook.preflight.gates import SUFFIX

MACHINE = "machine"
"""The part of a preflight that asks for prerequisites."""

LOOKED_AT = "learning"
"""The case that trains the run's own model."""

COLOURS = {"cmp": BLUE, "slc": VERMILION, "win": GREEN}


def preflight_figures(run: Recorded) -> dict[str, Chart]:
    """Return the charts of a preflight: selection, gates, mass."""
    return {
        "selection": selection_map(run, 1, LOOKED_AT),
        "gates": gate_map(run, LOOKED_AT),
        "mass": branch_mass(run),
    }


def branch_mass(run: Recorded) -> Chart:
    """Draw each branch's share in what the attention of every layer puts out."""
    kept, title, unit = run.fact(LOOKED_AT, "attention_map"), "Attention mass by branch", "share"
    if not kept or "branch_mass" not in kept:
        return nothing(title, unit, "the case that trains the model kept no attention map")
    figure = empty_chart(title, unit, "norm of gate times output, as a share of the three branches' sum")
    for place, branch in enumerate(kept["branches"]):
        shares = [layer[place] for layer in kept["branch_mass"]]
        hover = f"%{{y:.1%}} {BRANCH_WORDS[branch]}"
        layers, name = list(range(1, len(shares) + 1)), BRANCH_WORDS[branch]
        figure.add_trace(go.Bar(x=layers, y=shares, name=name, marker_color=COLOURS[branch], hovertemplate=hover))
    figure.update_xaxes(title_text="layer", dtick=1)
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    return figure.update_layout(barmode="stack", bargap=0.25)


def checks_table(gates: Iterable[Mapping], group: str) -> Table:
    """Tabulate one part of a preflight: `machine`, a group of `check_names`, or `full`.

    What passed is folded: it stands among the gates too.
    """
    gates = list(gates)
    ours, owed = check_names((*BACKEND_NAMES, OWN)), check_names(brings="attention", compiled=True)
    # Some names are in both; which group they are of depends on what was on trial.
    known = (ours, owed) if any(gate["name"] == "self_error" for gate in gates) else (owed, ours)
    groups = {name: of for names_by_case in known for of, names in names_by_case.items() for name in names}
    own = [gate for gate in gates if group == _group(gate["name"], groups)]
    return gates_table(own, caption=f"Checks: {group}", kind="check", folds_passed=True)


def _group(name: str, groups: Mapping[str, str]) -> str:
    return FULL if name.endswith(SUFFIX) else groups.get(name, MACHINE)
