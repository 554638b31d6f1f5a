"""What the driver says of a GPU's health: clocks, throttling, ECC errors, retired memory; at start and end of a run.

Read from nvidia-smi's XML, which tells what it does not know as N/A and lets a reader pass over what it does not know.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nsa_lib.contract.files import write_json
from nsa_lib.runs import environment
from nsa_lib.runs.sums import seal

FILE = "health.json"

SCHEMA = 1

SLOWDOWNS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
"""Reasons for which a GPU runs below the clock that it was asked for, and should not; a power cap is everyday."""

COUNTED = ("hw_therm_slowdown", "hw_power_brake", "sw_therm_slowdown")
"""The same as drivers from 550 on count them, in microseconds since the driver was loaded."""


@contextmanager
def recorded(folder: Path, gpu_uuid: object) -> Iterator[None]:
    """Write what the driver says of a run's GPU before its first case, and again after the last; without one nothing.

    Of a run that is killed there is the start alone.
    """
    if gpu_uuid is None:
        yield
        return
    found = {"schema": SCHEMA, "start": read_health(str(gpu_uuid)), "end": None}
    _write(folder, found)
    yield
    _write(folder, {**found, "end": read_health(str(gpu_uuid))})


def _write(folder: Path, found: Mapping[str, object]) -> None:
    write_json(folder / FILE, found)
    seal(folder, [folder / FILE])


def recorded_health(folder: Path) -> dict[str, object] | None:
    """Return what was recorded of the health of a run's GPU, `start` and `end`; None if nothing was, or it is torn."""
    try:
        return json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return None


def read_health(gpu_uuid: str) -> dict[str, object] | None:
    """Return what nvidia-smi says of a GPU; None if it says nothing."""
    named = gpu_uuid if gpu_uuid.startswith(("GPU-", "MIG-")) else f"GPU-{gpu_uuid}"
    lines = environment.answer("nvidia-smi", "--query", "--xml-format", f"--id={named}")
    return None if lines is None else parsed("\n".join(lines))


def parsed(text: str) -> dict[str, object] | None:
    """Return the health that a text of `nvidia-smi -q -x` tells of its first GPU; None if it is no such text.

    A figure that the driver does not tell is None. Units: MHz, W, °C, µs.
    """
    try:
        gpu = ET.fromstring(text).find("gpu")
    except ET.ParseError:
        return None
    if gpu is None:
        return None
    reasons = _under(gpu, "clocks_event_reasons") or _under(gpu, "clocks_throttle_reasons")
    counters = _under(gpu, "clocks_event_reasons_counters")
    power = _under(gpu, "gpu_power_readings") or _under(gpu, "power_readings")
    rows, pages = _under(gpu, "remapped_rows"), _under(gpu, "retired_pages")
    return {
        "sm_clock_mhz": _number(gpu.findtext("clocks/sm_clock")),
        "max_sm_clock_mhz": _number(gpu.findtext("max_clocks/sm_clock")),
        "power_limit_w": _number(power.get("current_power_limit") or power.get("power_limit")),
        "temperature_c": _number(gpu.findtext("temperature/gpu_temp")),
        "slowdowns": _active(reasons),
        "slowdown_us": {name: _number(_ending(counters, name)) for name in COUNTED},
        "ecc_mode": _known(gpu.findtext("ecc_mode/current_ecc")),
        "ecc_uncorrectable": _errors(gpu, "volatile"),
        "retirement_pending": _yes(pages.get("pending_retirement") or pages.get("pending_blacklist")),
        "retired_pages": _retired(gpu),
        "remapped_rows": _number(rows.get("remapped_row_unc")),
        "remap_pending": _yes(rows.get("remapped_row_pending")),
        "remap_failure": _yes(rows.get("remapped_row_failure")),
    }


def _under(gpu: ET.Element, path: str) -> dict[str, str]:
    """Return the texts of the elements right below one, by their tags."""
    found = gpu.find(path)
    return {} if found is None else {element.tag: (element.text or "").strip() for element in found}


def _known(text: str | None) -> str | None:
    return None if text is None or text.strip() in ("", "N/A") else text.strip()


def _number(text: str | None) -> float | None:
    """Return the figure at the start of a text such as `700.00 W`."""
    found = re.match(r"[\d.]+", (text or "").strip())
    return float(found[0]) if found else None


def _yes(text: str | None) -> bool | None:
    return {"Yes": True, "No": False}.get((text or "").strip())


def _ending(named: Mapping[str, str], name: str) -> str | None:
    return next((text for tag, text in named.items() if tag.endswith(name)), None)


def _active(reasons: Mapping[str, str]) -> list[str] | None:
    """Return the slowdowns that are in force; None where the driver does not tell of any."""
    told = {name: _ending(reasons, f"reason_{name}") for name in SLOWDOWNS}
    known = {name: text for name, text in told.items() if text in ("Active", "Not Active")}
    return [name for name, text in known.items() if text == "Active"] if known else None


def _errors(gpu: ET.Element, since: str) -> float | None:
    """Return uncorrectable ECC errors of all memories together, as drivers name them; None if none is told."""
    told = [_number(text) for tag, text in _under(gpu, f"ecc_errors/{since}").items() if "uncorrectable" in tag]
    known = [count for count in told if count is not None]
    return sum(known) if known else None


def _retired(gpu: ET.Element) -> float | None:
    told = [_number(element.text) for element in gpu.iterfind("retired_pages/*/retired_count")]
    known = [count for count in told if count is not None]
    return sum(known) if known else None
