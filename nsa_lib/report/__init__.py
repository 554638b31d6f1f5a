"""What a run shows: tables and the verdict in the notebook, the HTML report, and the papermill engine that writes it.

Only the tables and the verdict are loaded at once. nbconvert and papermill take seconds to import and a notebook needs
neither, so the exporter and the engine are loaded when their entry points ask for them.
"""

from nsa_lib.report.facts import environment_table, facts_table, machine_table
from nsa_lib.report.guard import show
from nsa_lib.report.table import Table
from nsa_lib.report.tables import advice_table, cases_table, gates_table, parameters_table, prediction_table
from nsa_lib.report.verdict import VerdictError, conclude, read_verdict

__all__ = [
    "NsaEngine",
    "NsaHTMLExporter",
    "Table",
    "VerdictError",
    "advice_table",
    "cases_table",
    "conclude",
    "environment_table",
    "facts_table",
    "gates_table",
    "machine_table",
    "parameters_table",
    "prediction_table",
    "read_verdict",
    "show",
]


def __getattr__(name: str):
    if name == "NsaHTMLExporter":
        from nsa_lib.report.exporter import NsaHTMLExporter

        return NsaHTMLExporter
    if name == "NsaEngine":
        # papermill loads every registered engine, this one too, while it is imported: it must come first.
        import papermill.engines  # noqa: F401

        from nsa_lib.report.engine import NsaEngine

        return NsaEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
