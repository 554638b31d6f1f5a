"""Which of several nodes this machine is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from nsa_lib.runs import environment
from nsa_lib.runs.parameters import Value
from nsa_lib.subject.config import AUTO, ConfigError

ENDPOINT = re.compile(r"[^\s:/]+:[0-9]{1,5}")


def decided_node(values: Mapping[str, Value]) -> Value:
    """Return the number of this node, from the scheduler if the user does not say.

    Raises ConfigError for nodes that could not meet.
    """
    nodes, number, rendezvous = values["nodes"].value, values["node_rank"], str(values["rendezvous"].value)
    if nodes == 1:
        given = [
            f"{name}={values[name].value}"
            for name in ("rendezvous", "node_rank")
            if values[name].value not in ("", None)
        ]
        if given:
            raise ConfigError(f"{', '.join(given)}, nodes=1: one machine meets no other; accepts nodes above 1")
        return number
    if not ENDPOINT.fullmatch(rendezvous):
        raise ConfigError(f"nodes={nodes}, rendezvous={rendezvous!r}: accepts HOST:PORT of node 0, such as node0:29400")
    if number.value is None:
        number = replace(number, value=environment.place_in_job()["rank"], origin=AUTO)
    if number.value is None or number.value >= nodes:
        raise ConfigError(f"nodes={nodes}, node_rank={number.value}: accepts 0 to {nodes - 1}, another on each machine")
    return number
