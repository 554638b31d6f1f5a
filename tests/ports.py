"""Ports of this machine that nobody takes between the moment they are found and the moment they are listened on."""

import random
import socket
from contextlib import ExitStack
from pathlib import Path

FIRST = 10_000


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below those that the kernel gives to whoever asks for any.

    A port got by binding to 0 and let go is given to the next that does so, such as a Jupyter kernel of another test.
    """
    beyond = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            port = random.SystemRandom().randrange(FIRST, beyond)
            one = held.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", port))
            except OSError:  # taken
                continue
            found.append(port)
        return found
