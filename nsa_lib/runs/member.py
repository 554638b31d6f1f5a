"""One GPU of a fleet: what its run says of where it ran, and where the runs of a fleet are kept.

That is the whole protocol: whoever runs a notebook with `-p fleet NAME` leaves an ordinary run folder in
`<out_dir>/fleets/NAME/runs/`, whose run.json has `member`. A folder of their own, since thousands of them would
otherwise stand before every later run that is looked for in `out_dir`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nsa_lib.runs import environment
from nsa_lib.runs.parameters import Value

FLEETS = "fleets"


def fleet_folder(out_dir: Path, fleet: str) -> Path:
    """Return the folder that the runs of a fleet have as their `out_dir`."""
    return out_dir / FLEETS / fleet


def member_of(values: Mapping[str, Value], facts: Mapping[str, object]) -> dict[str, object] | None:
    """Return which GPU of which fleet a run is of, or None if it is of none.

    Args:
        values: effective parameters.
        facts: of the machine.

    Returns:
        `fleet`; `rank`: its number in the fleet, None if nobody counts; `job`: of the scheduler; `host`; `gpu_uuid`,
        None without a GPU.
    """
    if "fleet" not in values or not values["fleet"].value:
        return None
    told, given = environment.place_in_job(), values["member"].value
    return {
        "fleet": values["fleet"].value,
        "rank": told["rank"] if given is None else given,
        "job": told["job"],
        "host": facts.get("host"),
        "gpu_uuid": facts.get("gpu_uuid"),
    }


def run_tag(tag: str, member: Mapping[str, object] | None) -> str:
    """Return the tag in the name of a run folder: members that start in one second do not ask for the same name."""
    if member is None:
        return tag
    place = member["host"] if member["rank"] is None else member["rank"]
    return "-".join(filter(None, [tag, str(place)]))
