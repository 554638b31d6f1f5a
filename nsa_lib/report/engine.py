"""The papermill engine `nsa`: executes as papermill does and leaves an HTML report beside the output notebook, however
the run ended.

A killed kernel leaves a notebook in which nothing looks wrong. Only the engine knows, so it writes the outcome into the
notebook's metadata. It judges nothing: the report reads the outcome. It tells the kernel on its command line where the
report will be, so that run folder and index can link to it.
Load it through `nsa_lib.report.NsaEngine`, as papermill does.
"""

import os
from pathlib import Path

import click
import nbformat
from papermill.engines import NBClientEngine
from papermill.iorw import papermill_io
from papermill.log import logger

from nsa_lib.report.exporter import NsaHTMLExporter
from nsa_lib.report.guard import guarded
from nsa_lib.report.kernel import QUIET, StoppableKernel, signals_given_back
from nsa_lib.report.verdict import FINISHED, OUTCOME_KEY
from nsa_lib.runs.report_file import report_beside

UNFINISHED = "it is being made, or papermill was killed before its end"


class NsaEngine(NBClientEngine):
    """Execute a notebook and write its report, after an error, a dead kernel, a timeout or Ctrl-C too."""

    @classmethod
    @signals_given_back()
    def execute_notebook(cls, nb, kernel_name, output_path=None, **kwargs):
        """Execute `nb`.

        Raises click.UsageError, before anything is written, for an output that is named as a page, and for a parameter
        whose name papermill would write down as an expression: `-p l-sel 32`.
        """
        for name in nb.metadata.papermill.get("parameters", ()):
            if not name.isidentifier():
                raise click.UsageError(f"{name}: no name of a parameter; did you mean {name.replace('-', '_')}?")
        if str(output_path or "").lower().endswith(".html"):
            raise click.UsageError(f"{output_path}: the executed notebook cannot be named as its report is; use .ipynb")
        return super().execute_notebook(nb, kernel_name, output_path=output_path, **kwargs)

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, extra_arguments=(), **kwargs):
        """Execute the notebook of `nb_man`; whatever it raises goes on to papermill once the report is written."""
        nb_man.nb.metadata[OUTCOME_KEY] = {"outcome": UNFINISHED}
        guarded(lambda: _write(nb_man.nb))  # over an earlier run's page, which must not stand there if this is killed
        told = [f"--Nsa.report={place}"] if (place := _local_place(nb_man.nb)) else []
        try:
            super().execute_managed_notebook(
                nb_man,
                kernel_name,
                extra_arguments=[*extra_arguments, QUIET, *told],
                kernel_manager_class=StoppableKernel,
                **kwargs,
            )
            outcome = FINISHED
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}".strip(": ")
            raise
        finally:
            nb_man.nb.metadata[OUTCOME_KEY] = {"outcome": outcome}
            write_report(nb_man.nb)


def _local_place(nb: nbformat.NotebookNode) -> Path | None:
    """Return where the report of `nb` will be, or None if that is no file on this machine."""
    output = nb.metadata.papermill.output_path
    if output in (None, "-") or "://" in output:
        return None
    # With --cwd this process has changed its folder meanwhile; papermill still writes relative to the first one.
    files = papermill_io.get_handler("report.html", extensions=[".html"])
    started_in = files.cwd(None)
    files.cwd(started_in)
    return Path(os.path.abspath(Path(started_in or os.getcwd(), report_beside(output))))


def write_report(nb: nbformat.NotebookNode) -> None:
    """Write the report of `nb` beside its output notebook and log its path; an output that has no name gets none.

    A page that cannot be written, into another user's file or on a full disk, is logged in a line: the run goes on, and
    papermill says how it ended.
    """
    path, problem = guarded(lambda: _write(nb))
    logger.info(f"HTML report:     {problem or path or 'none, the output notebook has no path'}")


def _write(nb: nbformat.NotebookNode) -> str | None:
    notebook_path = nb.metadata.papermill.output_path
    if notebook_path in (None, "-"):
        return None
    path = report_beside(notebook_path)
    # What nbconvert would read from the file, so that both make the same report.
    saved = nbformat.reads(nbformat.writes(nb), as_version=nbformat.NO_CONVERT)
    name = os.path.basename(path).removesuffix(".html")
    html, _ = NsaHTMLExporter().from_notebook_node(saved, {"metadata": {"name": name}})
    papermill_io.write(html, path, extensions=[".html"])
    return path
