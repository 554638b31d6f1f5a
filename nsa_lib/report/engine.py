"""The papermill engine `nsa`: executes as papermill does and leaves an HTML report beside the output notebook, however
the run ended.

A killed kernel leaves a notebook in which nothing looks wrong. Only the engine knows, so it writes the outcome into the
notebook's metadata. It judges nothing: the report reads the outcome.
Load it through `nsa_lib.report.NsaEngine`, as papermill does.
"""

import os

import nbformat
from papermill.engines import NBClientEngine
from papermill.iorw import papermill_io
from papermill.log import logger

from nsa_lib.report.exporter import NsaHTMLExporter
from nsa_lib.report.verdict import FINISHED, OUTCOME_KEY


class NsaEngine(NBClientEngine):
    """Execute a notebook and write its report, after an error, a dead kernel, a timeout or Ctrl-C too."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
        """Execute the notebook of `nb_man`; whatever it raises goes on to papermill once the report is written."""
        nb_man.nb.metadata[OUTCOME_KEY] = {"outcome": "papermill ended before the run did"}
        try:
            super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
            outcome = FINISHED
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}".strip(": ")
            raise
        finally:
            nb_man.nb.metadata[OUTCOME_KEY] = {"outcome": outcome}
            write_report(nb_man.nb)


def write_report(nb: nbformat.NotebookNode) -> None:
    """Write the report of `nb` beside its output notebook and log its path; an output that has no name gets none."""
    notebook_path = nb.metadata.papermill.output_path
    if notebook_path in (None, "-"):
        logger.info("HTML report:     none, the output notebook has no path")
        return
    base = os.path.splitext(notebook_path)[0]
    # What nbconvert would read from the file, so that both make the same report.
    saved = nbformat.reads(nbformat.writes(nb), as_version=nbformat.NO_CONVERT)
    html, _ = NsaHTMLExporter().from_notebook_node(saved, {"metadata": {"name": os.path.basename(base)}})
    papermill_io.write(html, f"{base}.html", extensions=[".html"])
    logger.info(f"HTML report:     {base}.html")
