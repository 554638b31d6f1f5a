"""What a readiness run leaves for a reviewer: its gates as JUnit, and one archive of all runs that count."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nsa_lib.contract.figures import with_unit, written
from nsa_lib.judgement.gate import ERROR, FAILURE, SHOWN, WARNING, standing

NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, even escaped; the stderr of a worker may have them."""


def junit(suites: Mapping[str, tuple[str, Sequence[Mapping]]]) -> str:
    """Return gates as JUnit XML, a suite a notebook and a test case a gate.

    A required gate that failed is a failure, one that did not run an error. What is not required is skipped then, with
    what it said: no failure stands beside a GO. A warning passes and says so.

    Args:
        suites: for each notebook the ISO time of its run and its gates.
    """
    root = ET.Element("testsuites", name="readiness")
    for notebook, (created, gates) in suites.items():
        suite = ET.SubElement(root, "testsuite", name=notebook, timestamp=_xml(created[:19]))
        kinds = [_add_gate(suite, notebook, gate) for gate in gates]
        counts = {"tests": len(kinds)}
        counts |= {f"{kind}s" if kind != "skipped" else kind: kinds.count(kind) for kind in REPORTED}
        for name, count in counts.items():
            suite.set(name, str(count))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


REPORTED = ("failure", "error", "skipped")


def _add_gate(suite: ET.Element, notebook: str, gate: Mapping) -> str | None:
    """Add a gate to its suite and return what it is reported as, None for one that passed."""
    case = ET.SubElement(suite, "testcase", name=_xml(gate["name"]), classname=notebook)
    said = _xml(f"{gate['outcome']}: {_figures(gate)}{gate['detail']}")
    found = standing(gate["outcome"], gate["required"])
    if found == WARNING:
        ET.SubElement(case, "system-out").text = said
    kind = {FAILURE: "failure", ERROR: "error", SHOWN: "skipped"}.get(found)
    if kind:
        ET.SubElement(case, kind, message=said)
    return kind


def _figures(gate: Mapping) -> str:
    if gate["measured"] is None:
        return ""
    limit = "" if gate["limit"] is None else f" (limit {written(gate['limit'])})"
    return f"{with_unit(gate['measured'], gate['unit'])}{limit} "


def _xml(text: object) -> str:
    return NOT_IN_XML.sub("�", str(text))


def pack(archive: Path, *, runs: Iterable[Path], reports: Mapping[Path, str], files: Iterable[Path], page: str) -> None:
    """Write a zip archive for review.

    Args:
        archive: its path.
        runs: run folders, with all that lies in them, and their names in runs/.
        reports: HTML files with their names in reports/.
        files: kept at the top of the archive.
        page: the HTML of readiness.html, at the top; its links lead to reports/.
    """
    # A file copied from elsewhere may be dated before 1980, which zip cannot hold.
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as packed:
        packed.writestr("readiness.html", page)
        for folder, name in runs.items():
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink():  # a link may lead out of the folder
                    packed.write(path, Path("runs", name, path.relative_to(folder)))
        for path, name in reports.items():
            packed.write(path, Path("reports", name))
        for path in files:
            packed.write(path, path.name)


def named_apart(paths: Iterable[Path]) -> dict[Path, str]:
    """Return each path once, with its name; one whose name another has already gets a number before it."""
    named: dict[Path, str] = {}
    for path in dict.fromkeys(paths):
        named[path] = f"{len(named) + 1}-{path.name}" if path.name in named.values() else path.name
    return named
